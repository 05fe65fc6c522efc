"""Series and segmentations of real scanners and other makers."""

import numpy as np
import pydicom
import pytest

from lib.dicom.grid import series_grid
from lib.dicom.image import load_series, read_headers
from lib.dicom.seg_reader import read_segments, referenced_series
from lib.dicom.seg_writer import SegOrigin, write_seg
from lib.errors import LabelError, VolumeError
from lib.volume import load_volume

pytestmark = pytest.mark.data
ORIGIN = SegOrigin("ann", "vit_t", "base", "1.2.3.4", "1.2.3.5")


def files_in(folder):
    return sorted(path for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("name", "shape"), [("Prostate3T-03-0001", (384, 384, 19)), ("Prostate3T-03-0002", (384, 384, 21))]
)
def test_a_tilted_mr_series_is_a_volume_and_its_label_comes_back(data_dir, name, shape):
    files = files_in(data_dir / "dicom_mr_prostate" / name)
    volume, grid = load_series(files)
    assert volume.shape_ijk == shape
    assert volume.spacing_mm == pytest.approx((0.5, 0.5, 3.0), abs=0.11)
    values = (np.random.default_rng(0).random(shape) < 0.01).astype(np.uint8) * 2
    written = write_seg(values, {"prostate": 2}, {}, read_headers(files), grid, ORIGIN)
    assert np.array_equal(read_segments(written, grid).as_labels({"prostate": 2}), values)


@pytest.mark.parametrize(
    ("folder", "seg", "truth"),
    [
        ("ct-3slice", "liver.dcm", "liver_seg.nrrd"),
        ("23x38x3/image", "23x38x3/seg/label.seg", "23x38x3/nrrd/label.nrrd"),
        ("24x38x3/image", "24x38x3/seg/label.seg", "24x38x3/nrrd/label.nrrd"),
    ],
)
def test_a_segmentation_of_dcmqi_is_what_its_maker_says(data_dir, folder, seg, truth):
    root = data_dir / "dicom_seg"
    headers = read_headers(files_in(root / folder))
    grid = series_grid(headers)
    dataset = pydicom.dcmread(root / seg)
    expected = load_volume(root / truth)
    assert np.allclose(expected.affine, grid.affine, atol=1e-2)
    assert referenced_series(dataset) == headers[0].SeriesInstanceUID
    found = read_segments(dataset, grid)
    assert np.array_equal(found.as_labels({"liver": 1}), expected.array)
    with pytest.raises(LabelError, match="segment 'Liver' is not one of the labels; allowed: spleen"):
        found.as_labels({"spleen": 1})


@pytest.mark.parametrize(
    ("seg", "said"),
    [
        ("partial_overlaps.dcm", "segments 'GREEN' and 'ORANGE' share 3017 voxels"),
        ("sparse-labelmap-ppv5.dcm", "FrameOfReferenceUID: .* is another than its image's"),
    ],
)
def test_what_one_label_map_cannot_hold_is_refused(data_dir, seg, said):
    root = data_dir / "dicom_seg"
    grid = series_grid(read_headers(files_in(root / "ct-3slice")))
    with pytest.raises(LabelError, match=said):
        read_segments(pydicom.dcmread(root / seg), grid)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("dicom_ct_tilted_gaps/dicom", r"sheared by 18\.5 degrees \(gantry tilt\)"),
        ("dicom_ct_blank_uids/example_ct_dicom", "StudyInstanceUID: it is blank"),
    ],
)
def test_series_that_are_no_volume_are_refused_with_the_reason(data_dir, folder, said):
    with pytest.raises(VolumeError, match=said):
        load_series(files_in(data_dir / folder))
