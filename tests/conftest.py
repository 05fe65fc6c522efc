"""Fixtures shared by all tests: tiny volumes, DICOM series, a tiny model, a PACS, the folder of real data."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch

from lib.dicom.orthanc import INSTALL, Orthanc
from lib.dicom.series_writer import SeriesNames, write_series
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


SERIES_SHAPE = (20, 14, 9)  # columns, rows, slices
SERIES_SPACING_MM = (0.8, 1.1, 2.5)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(degrees: tuple[float, float]) -> np.ndarray:
    a, b = np.deg2rad(degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


# DICOM series in the geometries in which axis mix-ups show.
# Row, column and their normal as the columns of a matrix, in LPS; and whether instances are numbered downwards.
GEOMETRIES = {
    "axial": (np.eye(3), False),
    "sagittal": (np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=float), False),
    "coronal": (np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float), False),
    "oblique": (turned((20, 35)), False),
    "flipped": (np.diag([-1.0, 1.0, -1.0]), False),
    "descending": (np.eye(3), True),
}


def made_volume(geometry: str, shape: tuple[int, int, int] = SERIES_SHAPE) -> Volume:
    """Another value in every voxel, as far as int16 goes."""
    directions, _ = GEOMETRIES[geometry]
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = directions * SERIES_SPACING_MM, (-31.5, 12.25, 103.0)
    array = np.random.default_rng(7).permutation(np.prod(shape)).reshape(shape) - 1000
    return Volume(array.astype(np.int16), _LPS_TO_RAS @ lps)


@pytest.fixture(scope="session")
def geometries() -> dict[str, tuple[np.ndarray, bool]]:
    """Name -> directions of row, column and normal (LPS), and whether instances are numbered downwards."""
    return GEOMETRIES


@pytest.fixture(params=GEOMETRIES)
def geometry(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_series(tmp_path: Path) -> Callable[..., tuple[Volume, list[Path]]]:
    """Writes a series of that geometry, whose volume it returns too."""

    def make(
        geometry: str = "axial",
        shape: tuple[int, int, int] = SERIES_SHAPE,
        seed: str = "1",
        patient: str = "made",
    ) -> tuple[Volume, list[Path]]:
        volume, (_, descending) = made_volume(geometry, shape), GEOMETRIES[geometry]
        numbers = list(range(1, shape[2] + 1))
        names = SeriesNames(patient, geometry, f"tests {geometry} {seed}")
        folder = tmp_path / f"{geometry}-{seed}"
        return volume, write_series(volume, names, folder, numbers[::-1] if descending else None)

    return make


def ask(server: Orthanc, method: str, path: str, **named: Any) -> httpx.Response:
    answer = httpx.request(
        method, f"http://127.0.0.1:{server.port}{path}", auth=server.login, timeout=600, **named
    )
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture(scope="session")
def upload() -> Callable[[Orthanc, list[Path]], None]:
    """Puts files into the PACS as a scanner does."""

    def put(server: Orthanc, files: list[Path]) -> None:
        for file in files:
            ask(server, "POST", "/instances", content=file.read_bytes())

    return put


@pytest.fixture(scope="session")
def segmentations() -> Callable[[Orthanc], list[str]]:
    """SOPInstanceUIDs of all that are stored."""

    def found(server: Orthanc) -> list[str]:
        query = {"Level": "Instance", "Query": {"Modality": "SEG"}, "Expand": True}
        answer = ask(server, "POST", "/tools/find", json=query).json()
        return [one["MainDicomTags"]["SOPInstanceUID"] for one in answer]

    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def started_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if not Orthanc.is_installed():
        pytest.skip(f"no Orthanc with DICOMweb here: {INSTALL}")
    with Orthanc(tmp_path_factory.mktemp("orthanc"), free_port()) as server:
        yield server


@pytest.fixture
def orthanc(started_orthanc: Orthanc) -> Orthanc:
    """A real one: empty, and running whatever the test before did to it."""
    if not started_orthanc.is_running or started_orthanc.login is not None:
        started_orthanc.stop()
        started_orthanc.login = None
        started_orthanc.start()
    for patient in ask(started_orthanc, "GET", "/patients").json():
        ask(started_orthanc, "DELETE", f"/patients/{patient}")
    return started_orthanc
