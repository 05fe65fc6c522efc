"""Pretraining: it learns, and a run that was cut goes on as if it had not been."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib.errors import CheckpointError
from lib.model.base import BaseSpec, load_base
from lib.pretraining.loop import CHECKPOINT, PretrainConfig, Progress, Stage, pretrain

CONFIG = PretrainConfig(
    stages=(Stage(32, 20), Stage(64, 20)),
    decay_steps=10,
    warmup_steps=5,
    learning_rate=2e-3,
    weight_decay=0.05,
    images=2,
    objects=2,
    round_shares=(0.4, 0.3, 0.3),
    ema_decay=0.9,
    seed=0,
    checkpoint_seconds=0,
    workers=0,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def with_steps(*steps: int) -> PretrainConfig:
    stages = [Stage(stage.image_size, count) for stage, count in zip(CONFIG.stages, steps, strict=True)]
    return dataclasses.replace(CONFIG, stages=tuple(stages))


def test_it_learns_and_writes_a_base_that_loads(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    seen: list[Progress] = []
    config = with_steps(60, 20)
    path = pretrain(tiny_spec, config, tmp_path / "trained", report=seen.append)
    idle: list[Progress] = []
    frozen = dataclasses.replace(config, learning_rate=1e-12)
    pretrain(tiny_spec, frozen, tmp_path / "idle", report=idle.append)
    assert [progress.step for progress in seen] == [20, 40, 60, 80]
    assert [progress.image_size for progress in seen] == [32, 32, 32, 64]
    # The loss changes its make-up during a run, so one that learns is compared with one that doesn't, step by step.
    assert seen[-1].loss < idle[-1].loss - 0.2
    assert len(seen[0].dice_by_round) == len(config.round_shares)
    sam, _ = load_base(tiny_spec, path)
    assert all(torch.isfinite(parameter).all() for parameter in sam.parameters())


class _Stop(Exception):
    pass


# The report of a step comes before its checkpoint, which is written after every step here: 21 leaves one of step 20,
# at the very end of a stage, and 22 one of the first step of the next.
@pytest.mark.parametrize("saved_at", [10, 20, 21])
def test_a_run_cut_off_goes_on_as_if_it_had_not_been(
    tiny_spec: BaseSpec, tmp_path: Path, saved_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.pretraining.loop.REPORT_STEPS", 1)
    config = with_steps(20, 6)

    def stop(progress: Progress) -> None:
        if progress.step == saved_at + 1:
            raise _Stop

    with pytest.raises(_Stop):
        pretrain(tiny_spec, config, tmp_path / "cut", report=stop)
    assert torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)["step"] == saved_at
    resumed, whole = (load_file(pretrain(tiny_spec, config, tmp_path / name)) for name in ("cut", "whole"))
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, msg=key)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_finished_run_can_be_prolonged(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    pretrain(tiny_spec, with_steps(2, 1), tmp_path)
    seen: list[Progress] = []
    pretrain(tiny_spec, with_steps(2, 3), tmp_path, report=seen.append)
    assert [progress.step for progress in seen] == [5]


def test_a_run_can_begin_from_weights_of_another_size(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    first = pretrain(tiny_spec, with_steps(1, 1), tmp_path / "first")
    config = dataclasses.replace(with_steps(1, 1), start=first, learning_rate=1e-12)
    second = pretrain(tiny_spec, config, tmp_path / "second")
    before, after = load_file(first), load_file(second)
    tokens = "mask_decoder.mask_tokens.weight"
    torch.testing.assert_close(after[tokens], before[tokens], atol=1e-4, rtol=0)
    # Down to the first stage's grid and up again: positions are blurred, not lost.
    positions = (load["image_encoder.pos_embed"].float().flatten() for load in (before, after))
    assert torch.corrcoef(torch.stack(tuple(positions)))[0, 1] > 0.3


def test_the_rate_rises_at_each_stage_and_falls_at_the_end() -> None:
    rates = [CONFIG.rate(step) / CONFIG.learning_rate for step in range(CONFIG.total_steps)]
    assert rates[0] == rates[20] == pytest.approx(0.2)
    assert rates[10] == rates[29] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert [CONFIG.plain(step) for step in (0, 10, 20, 39)] == [0.0, 0.5, 1.0, 1.0]
    assert [CONFIG.place(step) for step in (0, 19, 20, 39)] == [(0, 0), (0, 19), (1, 0), (1, 19)]


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(tiny_spec: BaseSpec, tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be read"):
        pretrain(tiny_spec, CONFIG, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == content


@pytest.mark.parametrize("content", [torch.zeros(2), {}, {"step": 3}], ids=["tensor", "empty", "incomplete"])
def test_what_is_no_checkpoint_of_a_run_is_named(
    tiny_spec: BaseSpec, tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: is no checkpoint of a pretraining"):
        pretrain(tiny_spec, CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (dataclasses.replace(with_steps(2, 2), seed=1), "seed 0, not 1"),
        (dataclasses.replace(with_steps(2, 2), learning_rate=1e-3), "learning_rate 0.002, not 0.001"),
        (dataclasses.replace(with_steps(2, 2), images=3), "images 2, not 3"),
        (dataclasses.replace(with_steps(2, 2), start=Path("x.pth")), "start 'None', not 'x.pth'"),
        (with_steps(3, 2), "steps of the stages before the last"),
        (dataclasses.replace(CONFIG, stages=(Stage(64, 4),)), "image sizes"),
        (with_steps(2, 1), "is at step 4; allowed: a recipe of at least as many, not 3"),
    ],
)
def test_a_run_goes_on_with_its_own_recipe_only(
    tiny_spec: BaseSpec, tmp_path: Path, changed: PretrainConfig, told: str
) -> None:
    pretrain(tiny_spec, with_steps(2, 2), tmp_path)
    with pytest.raises(CheckpointError) as caught:
        pretrain(tiny_spec, changed, tmp_path)
    assert told in str(caught.value)
    assert CHECKPOINT in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    pretrain(tiny_spec, with_steps(1, 1), tmp_path)
    other = dataclasses.replace(tiny_spec, encoder_depth=3)
    with pytest.raises(CheckpointError, match="of another network"):
        pretrain(other, with_steps(1, 2), tmp_path)
