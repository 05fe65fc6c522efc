"""The bases as they are configured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.bases import catalog, choose_base
from lib.model.adapters import AdapterDims
from lib.model.base import build_sam, file_sha256
from lib.model.catalog import BaseEntry, build_model
from lib.model.medsa import MedSA
from lib.settings import load_settings

APP = Path(__file__).parents[1] / "apps" / "medsa"
NAMES = ["vit_t", "vit_b", "vit_l", "vit_h"]


def share(entry: BaseEntry, dims: AdapterDims) -> float:
    """All that is trained for two labels, as a share of the base."""
    with torch.device("meta"):
        sam = build_sam(entry.spec)
        adapters = MedSA(sam, entry.spec, dims, ("one", "two")).adapters
    return sum(p.numel() for p in adapters.parameters()) / sum(p.numel() for p in sam.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_adapters_are_the_widest_that_stay_within_their_share(name: str) -> None:
    settings = load_settings(APP / "configs", {})
    entry, budget = catalog(settings, APP).entries[name], settings.bases[name].adapter_budget
    assert budget == (0.05 if name == "vit_t" else 0.02)
    assert (entry.dims.prompt_arm, entry.dims.depth) == ("hyper", 4)
    assert entry.dims.encoder_width % 8 == 0
    wider = replace(entry.dims, encoder_width=entry.dims.encoder_width + 8)
    assert share(entry, entry.dims) <= budget < share(entry, wider)


@pytest.mark.parametrize("name", NAMES)
def test_the_image_size_asked_for_reaches_every_base(name: str) -> None:
    own = catalog(load_settings(APP / "configs", {}), APP).entries[name]
    asked = catalog(load_settings(APP / "configs", {"image_size": "512"}), APP).entries[name]
    assert own.spec.image_size == (256 if name == "vit_t" else 1024)
    assert asked == replace(own, spec=replace(own.spec, image_size=512))


@pytest.mark.parametrize("size", [256, 320])
def test_the_shipped_base_runs_at_other_sizes(size: int) -> None:
    settings = load_settings(APP / "configs", {"base": "vit_t", "device": "cpu", "image_size": str(size)})
    model, _ = build_model(choose_base(settings, APP, None), ("object",))
    with torch.inference_mode():
        grid = size // model.spec.patch_size
        assert model.encode(torch.zeros(1, 3, size, size)).shape == (1, 256, grid, grid)


def test_the_small_base_keeps_its_promised_size() -> None:
    entry = catalog(load_settings(APP / "configs", {}), APP).entries["vit_t"]
    with torch.device("meta"):
        count = sum(p.numel() for p in build_sam(entry.spec).parameters())
    path = APP / "weights" / "vit_t.safetensors"
    assert count <= 12e6
    assert path.stat().st_size <= 25e6
    assert file_sha256(path) == entry.sha256


def test_fresh_adapters_are_the_same_every_time() -> None:
    settings = load_settings(APP / "configs", {"base": "vit_t", "device": "cpu"})
    choice = choose_base(settings, APP, None)
    first, second = (build_model(choice, ("object",))[0].adapter_state() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert first["encoder.0.space.down.weight"].std() > 0
