"""Small labelled cases with an easy object, in memory and as files."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lib.settings import IntensitySettings
from lib.training.cases import Case, CaseFile
from lib.training.viewpoint import Viewpoint
from lib.volume import Volume

SHAPE = (24, 20, 12)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def ellipsoid(seed: int) -> Case:
    """A bright ellipsoid of random place and size; slices along k, the first and last ones empty."""
    rng = np.random.default_rng(seed)
    centre = np.array(SHAPE) / 2 + rng.uniform(-3, 3, 3) * [1, 1, 0.5]
    radii = np.array([6, 5, 3.5]) * rng.uniform(0.8, 1.1, 3)
    place = np.moveaxis(np.indices(SHAPE), 0, -1)
    inside = (((place - centre) / radii) ** 2).sum(axis=-1) < 1
    image = 60.0 * inside + rng.normal(0, 8, SHAPE)
    return Case(f"case{seed}", Volume(image.astype(np.float32), AFFINE), inside.astype(np.uint8))


@pytest.fixture
def view() -> Viewpoint:
    return Viewpoint({"object": 1}, IntensitySettings())


@pytest.fixture
def cases() -> list[Case]:
    return [ellipsoid(seed) for seed in range(4)]


@pytest.fixture
def many_cases() -> list[Case]:
    """By the hashes of their names half of them are below 0.3."""
    return [ellipsoid(seed) for seed in range(10)]


@pytest.fixture
def unseen() -> list[Case]:
    return [ellipsoid(seed) for seed in range(10, 12)]


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[..., CaseFile]:
    """Writes a case's files; `label` replaces its label, `affine` the label's affine."""

    def write(case: Case, label: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> CaseFile:
        image = save(tmp_path / f"{case.case_id}.nii.gz", case.volume.array)
        stored = case.label if label is None else label
        return CaseFile(case.case_id, image, save(tmp_path / f"{case.case_id}.label.nii.gz", stored, affine))

    return write
