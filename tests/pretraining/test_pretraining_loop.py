"""Pretraining: it learns, and a run that was cut goes on as if it had not been."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib.model.base import BaseSpec, load_base
from lib.pretraining.loop import PretrainConfig, Progress, pretrain

CONFIG = PretrainConfig(
    steps=40,
    decay_steps=10,
    warmup_steps=5,
    learning_rate=2e-3,
    images=2,
    objects=2,
    checkpoint_seconds=0,
    workers=0,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_it_learns_and_writes_a_base_that_loads(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = pretrain(tiny_spec, CONFIG, tmp_path / "trained", report=seen.append)
    idle: list[Progress] = []
    pretrain(
        tiny_spec, dataclasses.replace(CONFIG, learning_rate=1e-12), tmp_path / "idle", report=idle.append
    )
    assert [progress.step for progress in seen] == [20, 40]
    # The loss changes its make-up during a run, so one that learns is compared with one that doesn't, step by step.
    assert seen[-1].loss < idle[-1].loss - 0.2
    assert len(seen[0].dice_by_round) == CONFIG.rounds
    sam, _ = load_base(tiny_spec, path)
    assert all(torch.isfinite(parameter).all() for parameter in sam.parameters())


class _Stop(Exception):
    pass


def test_a_run_cut_off_goes_on_from_its_checkpoint(tiny_spec: BaseSpec, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        raise _Stop

    with pytest.raises(_Stop):
        pretrain(tiny_spec, CONFIG, tmp_path / "cut", report=stop)
    cut_at = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"]
    seen: list[Progress] = []
    resumed = pretrain(tiny_spec, CONFIG, tmp_path / "cut", report=seen.append)
    assert 0 < cut_at < CONFIG.steps
    assert seen[-1].step == CONFIG.steps
    whole = pretrain(tiny_spec, CONFIG, tmp_path / "whole")
    assert load_file(whole).keys() == load_file(resumed).keys()
    assert not list(tmp_path.rglob("*.tmp"))
