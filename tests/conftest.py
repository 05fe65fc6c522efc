"""Fixtures shared by all tests: tiny volumes, a tiny model, the folder of real data."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import MedSA
from lib.volume import Volume

REPOSITORY = Path(__file__).resolve().parent.parent


class LabelledVolume(NamedTuple):
    """An image and its true mask (uint8, 1 inside), both (i, j, k)."""

    volume: Volume
    label: np.ndarray


@pytest.fixture
def tiny_spec() -> BaseSpec:
    """A SAM small enough to run in a unit test."""
    return BaseSpec(
        name="tiny",
        image_size=64,
        patch_size=16,
        encoder_width=32,
        encoder_depth=2,
        encoder_heads=2,
        global_blocks=(1,),
        window_size=2,
    )


@pytest.fixture
def tiny_model(tiny_spec: BaseSpec) -> MedSA:
    """A fresh adapter on an untrained tiny SAM, always with the same weights; in evaluation mode."""
    dims = AdapterDims(encoder_width=4, decoder_width=8, hyper_width=8, prompt_rank=4, hyper_layers=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MedSA(build_sam(tiny_spec), tiny_spec, dims, ("object",)).eval()


def oblique_affine(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Voxels to RAS mm, rotated by 20 and 35 degrees about two axes, with a flipped axis and an offset."""
    a, b = np.deg2rad([20.0, 35.0])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1.0, 1.0, 1.0]) @ np.diag(spacing_mm)
    affine[:3, 3] = (41.5, -17.25, 103.0)
    return affine


@pytest.fixture
def ellipsoid_case() -> LabelledVolume:
    """A bright ellipsoid off the centre of a 24x20x12 volume with noise, on an oblique anisotropic grid."""
    spacing_mm = (1.0, 1.25, 2.5)
    i, j, k = np.ogrid[:24, :20, :12]
    inside = ((i - 13) / 7) ** 2 + ((j - 8) / 5) ** 2 + ((k - 6) / 3.5) ** 2 <= 1
    noise = np.random.default_rng(0).normal(0.0, 15.0, inside.shape)
    image = np.where(inside, 400.0, 100.0) + noise
    return LabelledVolume(
        Volume(image.astype(np.float32), oblique_affine(spacing_mm)), inside.astype(np.uint8)
    )


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data sets; the test is skipped where they are not."""
    folder = Path(os.environ.get("MEDSA_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "MANIFEST.md").is_file():
        pytest.skip(f"no real data in {folder}; set MEDSA_DATA")
    return folder
