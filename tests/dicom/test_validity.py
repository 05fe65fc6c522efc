"""What is written passes dciodvfy, the validator of dicom3tools: segmentations, and the made series."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.coding import Code

from lib.dicom.grid import series_grid
from lib.dicom.image import read_headers
from lib.dicom.seg_writer import LabelCode, SegOrigin, write_seg

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        shutil.which("dciodvfy") is None, reason="no dciodvfy here: apt-get install dicom3tools"
    ),
]
LABELS = {"liver": 1, "spleen": 2}
LIVER, ANTERIOR = Code("10200004", "SCT", "Liver"), Code("255549009", "SCT", "Anterior")
CODES = {
    "liver": LabelCode(LIVER, (221, 130, 101)),
    "spleen": LabelCode(Code("78961009", "SCT", "Spleen"), (157, 108, 162), ANTERIOR),
}
ORIGIN = SegOrigin(
    "Ann Müller",
    "vit_t",
    "adapter 3",
    "1.2.826.0.1.3680043.8.498.11",
    "1.2.826.0.1.3680043.8.498.12",
    "label version 1",
)


def complaints(file: Path) -> list[str]:
    said = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False).stderr
    assert said.strip(), "the validator says which kind of object it is"
    return [line for line in said.splitlines() if line.startswith("Error")]


def test_segmentations_are_valid(make_series, geometry: str, tmp_path: Path) -> None:
    volume, files = make_series(geometry)
    headers = read_headers(files)
    values = np.random.default_rng(0).integers(0, 3, volume.shape_ijk).astype(np.uint8)
    written = write_seg(values, LABELS, CODES, headers, series_grid(headers), ORIGIN)
    written.save_as(tmp_path / "seg.dcm", write_like_original=False)
    assert complaints(tmp_path / "seg.dcm") == []
    assert complaints(files[0]) == []


def test_the_validator_notices_what_is_missing(make_series, tmp_path: Path) -> None:
    volume, files = make_series()
    headers = read_headers(files)
    values = np.ones(volume.shape_ijk, np.uint8)
    written = write_seg(values, LABELS, CODES, headers, series_grid(headers), ORIGIN)
    del written.SegmentSequence[0].SegmentLabel
    written.save_as(tmp_path / "seg.dcm", write_like_original=False)
    assert complaints(tmp_path / "seg.dcm")


@pytest.mark.data
@pytest.mark.parametrize("name", ["Prostate3T-03-0001", "Prostate3T-03-0002"])
def test_a_segmentation_of_a_real_series_is_valid(data_dir: Path, name: str, tmp_path: Path) -> None:
    folder = data_dir / "dicom_mr_prostate" / name
    headers = read_headers(sorted(path for path in folder.iterdir() if path.is_file()))
    grid = series_grid(headers)
    values = (np.random.default_rng(0).random(grid.shape_ijk) < 0.1).astype(np.uint8)
    write_seg(values, LABELS, CODES, headers, grid, ORIGIN).save_as(
        tmp_path / "seg.dcm", write_like_original=False
    )
    assert complaints(tmp_path / "seg.dcm") == []
