import pickle

import pytest
import torch

from lib.training.checkpoint import CheckpointFile, remove_parts

IDENTITY = {"kind": "full", "labels": {"liver": 1}}


def checkpoint(tmp_path, **options):
    return CheckpointFile(tmp_path / "checkpoints" / "full.pt", IDENTITY, 10.0, **options)


def test_what_was_written_is_read(tmp_path):
    checkpoint(tmp_path).write({"steps": 3, "weights": [torch.ones(2)]})
    stored = checkpoint(tmp_path).read()
    assert stored["steps"] == 3
    assert torch.equal(stored["weights"][0], torch.ones(2))


def test_of_another_training_nothing_is_read(tmp_path):
    checkpoint(tmp_path).write({"steps": 3})
    other = CheckpointFile(tmp_path / "checkpoints" / "full.pt", {**IDENTITY, "labels": {"liver": 2}}, 10.0)
    assert other.read() is None


@pytest.mark.parametrize("content", [b"", b"cut off", pickle.dumps(print)])
def test_a_damaged_file_is_none(tmp_path, content):
    one = checkpoint(tmp_path)
    one.write({"steps": 3})
    one.path.write_bytes(content)
    assert one.read() is None


def test_a_file_cut_off_in_the_middle_is_none(tmp_path):
    one = checkpoint(tmp_path)
    one.write({"weights": torch.ones(5000)})
    one.path.write_bytes(one.path.read_bytes()[:9000])
    assert one.read() is None


def test_it_is_due_after_its_time_and_not_before(tmp_path):
    now = [0.0]
    one = checkpoint(tmp_path, clock=lambda: now[0])
    assert not one.is_due()
    now[0] = 10.0
    assert one.is_due()
    one.write({})
    assert not one.is_due()


def test_slow_writing_is_done_less_often(tmp_path):
    """Each look at this clock takes two seconds, so writing takes two."""
    now = [0.0]

    def slow():
        now[0] += 2.0
        return now[0]

    one = checkpoint(tmp_path, clock=slow)
    one.write({})
    now[0] += 50.0
    assert not one.is_due()
    now[0] += 60.0
    assert one.is_due()


def test_nothing_is_left_beside_it(tmp_path):
    one = checkpoint(tmp_path)
    one.write({"steps": 1})
    assert [path.name for path in one.path.parent.iterdir()] == ["full.pt"]
    (one.path.parent / ".full.pt.abc.part").write_bytes(b"of a killed run")
    remove_parts(tmp_path)
    assert [path.name for path in one.path.parent.iterdir()] == ["full.pt"]
    one.remove()
    assert one.read() is None
