"""Made DICOM series in the geometries in which axis mix-ups show."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lib.dicom.series_writer import SeriesNames, write_series
from lib.volume import Volume

SHAPE = (20, 14, 9)  # columns, rows, slices
SPACING_MM = (0.8, 1.1, 2.5)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(degrees: tuple[float, float]) -> np.ndarray:
    a, b = np.deg2rad(degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


# Row, column and their normal as the columns of a matrix, in LPS; and whether instances are numbered downwards.
GEOMETRIES = {
    "axial": (np.eye(3), False),
    "sagittal": (np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=float), False),
    "coronal": (np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float), False),
    "oblique": (turned((20, 35)), False),
    "flipped": (np.diag([-1.0, 1.0, -1.0]), False),
    "descending": (np.eye(3), True),
}


def made_volume(geometry: str, shape: tuple[int, int, int] = SHAPE) -> Volume:
    """Another value in every voxel, as far as int16 goes."""
    directions, _ = GEOMETRIES[geometry]
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = directions * SPACING_MM, (-31.5, 12.25, 103.0)
    array = np.random.default_rng(7).permutation(np.prod(shape)).reshape(shape) - 1000
    return Volume(array.astype(np.int16), _LPS_TO_RAS @ lps)


@pytest.fixture(params=GEOMETRIES)
def geometry(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_series(tmp_path: Path) -> Callable[..., tuple[Volume, list[Path]]]:
    """Writes a series of that geometry, whose volume it returns too."""

    def make(
        geometry: str = "axial", shape: tuple[int, int, int] = SHAPE, seed: str = "1"
    ) -> tuple[Volume, list[Path]]:
        volume, (_, descending) = made_volume(geometry, shape), GEOMETRIES[geometry]
        numbers = list(range(1, shape[2] + 1))
        names = SeriesNames("made", geometry, f"tests {geometry} {seed}")
        folder = tmp_path / f"{geometry}-{seed}"
        return volume, write_series(volume, names, folder, numbers[::-1] if descending else None)

    return make
