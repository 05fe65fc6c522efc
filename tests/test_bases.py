"""The bases as they are configured."""

from pathlib import Path

import pytest
import torch

from lib.bases import catalog, choose_base
from lib.model.base import build_sam, file_sha256
from lib.model.catalog import build_model
from lib.model.medsa import MedSA
from lib.settings import load_settings

APP = Path(__file__).parents[1] / "apps" / "medsa"
NAMES = ["vit_t", "vit_b", "vit_l", "vit_h"]


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_trained_stays_within_its_share_of_the_base(name: str) -> None:
    settings = load_settings(APP / "configs", {})
    entry = catalog(settings, APP).entries[name]
    with torch.device("meta"):
        sam = build_sam(entry.spec)
        adapters = MedSA(sam, entry.spec, entry.dims, ("one", "two")).adapters
    share = sum(p.numel() for p in adapters.parameters()) / sum(p.numel() for p in sam.parameters())
    assert 0.6 * settings.bases[name].adapter_budget < share <= settings.bases[name].adapter_budget


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
