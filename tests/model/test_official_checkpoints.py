"""Checkpoints as SAM's authors publish them, in every size: made here by segment_anything, loaded by medsa."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry

from lib.bases import catalog
from lib.model.base import BaseSpec, load_base
from lib.settings import load_settings

APP = Path(__file__).parents[2] / "apps" / "medsa"
POSITIONS = "image_encoder.pos_embed"
LARGE = [pytest.param(name, marks=pytest.mark.large) for name in ("vit_l", "vit_h")]

Tensors = dict[str, torch.Tensor]


def spec_of(name: str, **conf: str) -> BaseSpec:
    return catalog(load_settings(APP / "configs", conf), APP).entries[name].spec


def official_tensors(name: str) -> Tensors:
    """The state dict of segment_anything's own `name`; no two values near one another or in two tensors are equal."""
    with torch.device("meta"):
        sam = sam_model_registry[name](None)
    found = sam.to_empty(device="cpu").state_dict()
    for number, tensor in enumerate(found.values()):
        ramp = torch.arange(tensor.numel(), dtype=torch.float32).remainder_(4093)
        tensor.copy_(ramp.mul_(2**-13).add_(number).view(tensor.shape))
    return found


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[[object], Path]]:
    """write(content) -> a .pth, removed after the test: it may have gigabytes, and pytest keeps folders."""
    path = tmp_path / "checkpoint.pth"

    def save(content: object) -> Path:
        torch.save(content, path)
        return path

    yield save
    path.unlink(missing_ok=True)


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    assert [key for key, value in wanted.items() if not torch.equal(found[key], value)] == []


@pytest.mark.parametrize("name", ["vit_b", *LARGE])
def test_an_official_checkpoint_loads_to_the_bit(name: str, write: Callable[[object], Path]) -> None:
    tensors = official_tensors(name)
    sam, _ = load_base(spec_of(name), write(tensors))
    assert_equal(sam.state_dict(), tensors)


def test_medsam_and_what_its_training_leaves_load_to_the_bit(write: Callable[[object], Path]) -> None:
    tensors = official_tensors("vit_b")
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    parallel = {f"module.{key}": value for key, value in tensors.items()}
    for content in (
        {"model": tensors, "optimizer": optimizer, "epoch": 3},
        {"model": parallel, "optimizer": optimizer, "epoch": 3},
    ):
        sam, _ = load_base(spec_of("vit_b"), write(content))
        assert_equal(sam.state_dict(), tensors)


@pytest.mark.parametrize("name", ["vit_b", *LARGE])
def test_an_official_checkpoint_loads_at_512_pixels(name: str, write: Callable[[object], Path]) -> None:
    spec, tensors = spec_of(name, image_size="512"), official_tensors(name)
    assert tensors[POSITIONS].shape == (1, 64, 64, spec.encoder_width)
    sam, _ = load_base(spec, write(tensors))
    found = sam.state_dict()
    tables = {
        f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for block in spec.global_blocks for axis in "hw"
    }
    changed = {key for key, value in tensors.items() if not torch.equal(value, found[key])}
    assert changed == {POSITIONS, *tables}
    assert found[POSITIONS].shape == (1, 32, 32, spec.encoder_width)
    assert {found[key].shape for key in tables} == {(63, spec.encoder_width // spec.encoder_heads)}
