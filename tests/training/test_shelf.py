import dataclasses
import gc
import itertools
import os
import weakref
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from lib.errors import TrainingError, VolumeError
from lib.training import shelf as shelf_module
from lib.training.cases import Skipped
from lib.training.loop import TrainOptions, train
from lib.training.shelf import Room, Shelf
from lib.training.slabs import prepare_case

LABELS = {"object": 1, "never": 2}


def test_usable_cases_are_read_in_order_and_the_others_named(cases, write_case):
    files = [write_case(cases[2]), write_case(cases[0], 5 * cases[0].label), write_case(cases[1])]
    shelf, skipped = Shelf.of(files, {"object": 1})
    assert list(shelf.labels_of) == ["case2", "case1"]
    first, second = shelf.pick(["case2", "case1"])
    assert (first.case_id, second.case_id) == ("case2", "case1")
    assert np.array_equal(first.label, cases[2].label)
    assert np.array_equal(first.volume.array, cases[2].volume.array)
    assert [found.case_id for found in skipped] == ["case0"]
    assert "value 5" in skipped[0].reason


def test_somebody_may_come_first_before_each_case(cases, write_case):
    paused = []
    Shelf.of([write_case(case) for case in cases[:3]], {"object": 1}, lambda: paused.append(1))
    assert len(paused) == 3


def test_an_empty_label_is_skipped_with_that_reason(cases, write_case):
    _, skipped = Shelf.of([write_case(cases[0], 0 * cases[0].label)], {"object": 1})
    assert skipped == [Skipped("case0", "the label is empty")]


def test_it_knows_which_labels_occur(cases, write_case):
    other = np.where(cases[1].label, 2, 0).astype(np.uint8)
    shelf, _ = Shelf.of([write_case(cases[0]), write_case(cases[1], other)], LABELS)
    assert shelf.labels_of == {"case0": ("object",), "case1": ("never",)}
    assert (shelf.occurring(), shelf.occurring(["case0"])) == ({"object", "never"}, {"object"})


def test_picked_cases_can_be_gone_through_again_and_are_in_memory_one_at_a_time(
    cases, write_case, monkeypatch
):
    alive = weakref.WeakSet()
    most = []
    load = shelf_module.load_volume

    def counted(path):
        volume = load(path)
        alive.add(volume)
        gc.collect()
        most.append(len(alive))
        return volume

    shelf, _ = Shelf.of([write_case(case) for case in cases], {"object": 1})
    monkeypatch.setattr(shelf_module, "load_volume", counted)
    picked = shelf.pick(["case0", "case1", "case3"])
    assert len(picked) == 3
    for _ in range(2):
        assert [case.case_id for case in picked] == ["case0", "case1", "case3"]
    assert len(most) == 6
    assert max(most) <= 2, "the one before, until the loop has let it go"


def test_a_label_that_is_saved_meanwhile_is_for_the_next_run(cases, write_case):
    file = write_case(cases[0])
    shelf, _ = Shelf.of([file], {"object": 1})
    write_case(cases[0], np.roll(cases[0].label, 2, axis=0))
    assert np.array_equal(shelf.case("case0").label, cases[0].label)


def test_an_image_that_is_replaced_or_removed_meanwhile_is_named(cases, write_case):
    file = write_case(cases[0])
    shelf, _ = Shelf.of([file], {"object": 1})
    smaller = nibabel.Nifti1Image(cases[0].volume.array[:-1], cases[0].volume.affine)
    nibabel.save(smaller, file.image)
    with pytest.raises(TrainingError, match="the image of case0 was replaced during the run"):
        shelf.case("case0")
    file.image.unlink()
    with pytest.raises(VolumeError, match="no such file"):
        shelf.case("case0")


@pytest.fixture
def prepared(cases, view, tiny_spec):
    return [prepare_case(case, view, tiny_spec.image_size, tiny_spec.mask_size) for case in cases]


def test_what_does_not_fit_into_memory_lies_in_a_file_without_a_name(prepared, tmp_path):
    one = prepared[0].planes.nbytes + prepared[0].labels.nbytes
    room = Room(tmp_path, 2 * one)
    kept = [room.keep(case) for case in prepared]
    assert [isinstance(case.planes, np.memmap) for case in kept] == [False, False, True, True]
    for before, after in zip(prepared, kept, strict=True):
        assert np.array_equal(before.planes, after.planes)
        assert np.array_equal(before.labels, after.labels)
    assert not list(tmp_path.iterdir())


def test_it_takes_a_share_of_what_is_available(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(shelf_module, "available_bytes", lambda device: 100)
    assert isinstance(Room.beside(tmp_path).keep(prepared[0]).planes, np.memmap)
    monkeypatch.setattr(shelf_module, "available_bytes", lambda device: None)
    assert Room.beside(tmp_path).keep(prepared[0]) is prepared[0]


def test_training_on_files_gives_the_same_weights(tiny_model, prepared, tmp_path):
    options = TrainOptions(6.0, 1e-2, 4, prompts_per_slice=4, seed=0)
    start = tiny_model.adapter_state()
    found = []
    for room in (Room(tmp_path, None), Room(tmp_path, 0)):
        tiny_model.load_adapter_state(start)
        train(
            tiny_model,
            [room.keep(case) for case in prepared],
            options,
            clock=itertools.count(0.0, 1.0).__next__,
        )
        found.append(tiny_model.adapter_state())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_disk_that_labels_need_is_not_filled(prepared, tmp_path, monkeypatch):
    free = SimpleNamespace(free=shelf_module.LEFT_FREE + 10)
    monkeypatch.setattr(shelf_module.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(TrainingError, match=r"has 2048 MB left, .* allowed: 2048 MB stay free"):
        Room(tmp_path, limit=0).keep(prepared[0])


def test_a_full_disk_is_an_error_and_no_crash(prepared, tmp_path, monkeypatch):
    """/dev/full says what a full disk says."""
    monkeypatch.setattr(
        shelf_module.tempfile, "TemporaryFile", lambda dir: os.fdopen(os.open("/dev/full", os.O_RDWR), "r+b")
    )
    with pytest.raises(OSError, match="No space left"):
        Room(tmp_path, 0).keep(dataclasses.replace(prepared[0]))
