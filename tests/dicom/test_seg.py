import io

import numpy as np
import pydicom
import pytest
from pydicom.sr.coding import Code

from lib.dicom.colours import from_dicom_lab, to_dicom_lab
from lib.dicom.grid import series_grid
from lib.dicom.image import read_headers
from lib.dicom.seg_reader import read_segments, referenced_series
from lib.dicom.seg_writer import LabelCode, SegOrigin, write_seg
from lib.errors import LabelError

LABELS = {"liver": 1, "spleen": 2, "kidney": 7}
ANTERIOR = Code("255549009", "SCT", "Anterior")
CODES = {"liver": LabelCode(Code("10200004", "SCT", "Liver"), (180, 60, 40), ANTERIOR)}
ORIGIN = SegOrigin("Ann^A\\B", "vit_t", "version 3", "1.2.3.4", "1.2.3.5", "corrected")
SUBSETS = [("liver",), ("spleen",), ("kidney",), ("liver", "kidney"), ("liver", "spleen", "kidney")]


@pytest.fixture
def series(make_series):
    def of(geometry="axial"):
        headers = read_headers(make_series(geometry)[1])
        return headers, series_grid(headers)

    return of


def mask_of(names, shape, seed=0):
    """Random voxels of these labels, the first and the last slice empty."""
    rng = np.random.default_rng(seed)
    values = rng.choice([0, *(LABELS[name] for name in names)], size=shape).astype(np.uint8)
    values[:, :, 0] = values[:, :, -1] = 0
    return values


def through_a_file(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream)
    return pydicom.dcmread(io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_a_label_comes_back_voxel_for_voxel(series, geometry, names):
    headers, grid = series(geometry)
    values = mask_of(names, grid.shape_ijk)
    written = through_a_file(write_seg(values, LABELS, CODES, headers, grid, ORIGIN))
    found = read_segments(written, grid)
    assert sorted(found.names.values()) == sorted(names)
    assert np.array_equal(found.as_labels(LABELS), values)


def test_it_says_of_what_it_is_and_who_made_it_with_which_weights(series):
    headers, grid = series()
    written = through_a_file(
        write_seg(mask_of(("liver", "kidney"), grid.shape_ijk), LABELS, CODES, headers, grid, ORIGIN)
    )
    assert referenced_series(written) == headers[0].SeriesInstanceUID
    assert written.PatientID == headers[0].PatientID
    assert (written.SeriesInstanceUID, written.SOPInstanceUID) == ("1.2.3.4", "1.2.3.5")
    assert "\\" not in str(written.ContentCreatorName)
    assert str(written.ContentCreatorName).startswith("Ann")
    liver, kidney = written.SegmentSequence
    assert (liver.SegmentNumber, liver.SegmentLabel, kidney.SegmentNumber) == (1, "liver", 2)
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("medsa vit_t", "version 3")
    (meant,) = liver.SegmentedPropertyTypeCodeSequence
    assert meant.CodeValue == "10200004"
    assert meant.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Anterior"
    assert from_dicom_lab(list(liver.RecommendedDisplayCIELabValue)) == pytest.approx((180, 60, 40), abs=3)
    slices = {
        item.PlanePositionSequence[0].ImagePositionPatient[2]
        for item in written.PerFrameFunctionalGroupsSequence
    }
    assert len(slices) == grid.shape_ijk[2] - 2, "empty slices are left out"


def test_a_series_that_says_little_of_its_patient_gets_a_label_too(series):
    headers, grid = series()
    for header in headers:
        for name in ("PatientName", "StudyID", "AccessionNumber", "StudyTime", "ReferringPhysicianName"):
            header.pop(name)
    assert write_seg(mask_of(("liver",), grid.shape_ijk), LABELS, {}, headers, grid, ORIGIN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SliceThickness", None),
        ("PatientSex", "U"),
        ("PatientBirthDate", "19700000"),
        ("StudyTime", "25"),
        ("LossyImageCompression", "01"),
        ("PatientName", "Łukasz^山田"),
    ],
)
def test_what_real_series_hold_keeps_no_label_from_being_written(series, name, value):
    headers, grid = series()
    for header in headers:
        header.SpecificCharacterSet = "ISO_IR 192"
        if value is None:
            header.pop(name)
        else:
            with pydicom.config.disable_value_validation():
                setattr(header, name, value)
    values = mask_of(("liver",), grid.shape_ijk)
    written = through_a_file(write_seg(values, LABELS, CODES, headers, grid, ORIGIN))
    assert np.array_equal(read_segments(written, grid).as_labels(LABELS), values)
    if name == "PatientName":
        assert str(written.PatientName) == value


def test_labels_that_differ_in_case_alone_are_told_apart(series):
    labels = {"Tumor": 1, "tumor": 2}
    headers, grid = series()
    values = (mask_of(("liver", "spleen"), grid.shape_ijk)).astype(np.uint8)
    written = write_seg(values, labels, {}, headers, grid, ORIGIN)
    assert np.array_equal(read_segments(written, grid).as_labels(labels), values)
    written.SegmentSequence[0].SegmentLabel = "TUMOR"
    with pytest.raises(LabelError, match="'TUMOR' is not one of the labels"):
        read_segments(written, grid).as_labels(labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: np.zeros_like(values), "label: it is empty; allowed: at least one voxel"),
        (lambda values: values[1:], r"shape \(19, 14, 9\) is not its image's \(20, 14, 9\)"),
        (lambda values: values + 1, "value 3 is not in the label set; allowed: 0, 1 liver"),
    ],
)
def test_what_is_no_label_is_not_written(series, change, said):
    headers, grid = series()
    with pytest.raises(LabelError, match=said):
        write_seg(change(mask_of(("liver", "spleen"), grid.shape_ijk)), LABELS, CODES, headers, grid, ORIGIN)


def written_by_others(series, names=("liver", "kidney")):
    headers, grid = series()
    values = mask_of(names, grid.shape_ijk)
    values[:4], values[-2:], values[:, :3] = 0, 0, 0
    return through_a_file(write_seg(values, LABELS, CODES, headers, grid, ORIGIN)), grid, values


def test_names_of_other_viewers_are_understood(series):
    dataset, grid, values = written_by_others(series)
    dataset.SegmentSequence[0].SegmentLabel = " LIVER "
    assert np.array_equal(read_segments(dataset, grid).as_labels(LABELS), values)


def test_frames_that_hold_a_part_in_another_order_are_put_where_they_lie(series):
    """Cut out, and its rows and columns turned round: as other makers may store it."""
    dataset, grid, values = written_by_others(series, ("spleen",))
    frames = dataset.pixel_array[:, 3:, 4:-2][:, ::-1, ::-1]
    i_last, j_last = values.shape[0] - 3, values.shape[1] - 1
    for item in dataset.PerFrameFunctionalGroupsSequence:
        position = np.array([float(value) for value in item.PlanePositionSequence[0].ImagePositionPatient])
        corner = grid.affine_lps[:3, 0] * i_last + grid.affine_lps[:3, 1] * j_last
        item.PlanePositionSequence[0].ImagePositionPatient = (position + corner).tolist()
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    dataset.Rows, dataset.Columns = frames.shape[1:]
    dataset.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    dataset._pixel_id = None
    assert np.array_equal(read_segments(dataset, grid).as_labels(LABELS), values)


def other_grid(dataset):
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.9, 0.8]


def beside(dataset):
    for item in dataset.PerFrameFunctionalGroupsSequence:
        position = item.PlanePositionSequence[0]
        position.ImagePositionPatient = [float(value) + 0.2 for value in position.ImagePositionPatient]


def outside(dataset):
    item = dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    item.ImagePositionPatient = [
        *item.ImagePositionPatient[:2],
        float(item.ImagePositionPatient[2]) + 5 * 2.5,
    ]


def overlapping(dataset):
    for item in dataset.PerFrameFunctionalGroupsSequence:
        number = item.SegmentIdentificationSequence[0]
        if number.ReferencedSegmentNumber == 2:
            number.ReferencedSegmentNumber = 1
    both = dataset.PerFrameFunctionalGroupsSequence
    both[1].PlanePositionSequence = both[0].PlanePositionSequence
    both[1].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda seg: setattr(seg, "FrameOfReferenceUID", "1.9"),
            "'1.9' is another than its image's; allowed: ",
        ),
        (lambda seg: setattr(seg, "Modality", "CT"), "Modality: 'CT' is not accepted; allowed: SEG"),
        (
            lambda seg: seg.pop("PerFrameFunctionalGroupsSequence"),
            "PerFrameFunctionalGroupsSequence: it is missing",
        ),
        (
            lambda seg: seg.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence"),
            "PixelMeasuresSequence: it is",
        ),
        (lambda seg: seg.SegmentSequence.pop(1), "ReferencedSegmentNumber: 2 is not described"),
        (other_grid, "voxels beside the image's; allowed: the grid of the image"),
        (beside, "0.25 voxels beside the image's"),
        (outside, "it lies outside of the image; allowed: shape"),
        (overlapping, "share [0-9]+ voxels of a slice; allowed: one label a voxel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_the_image_is_refused(series, spoil, said):
    dataset, grid, _ = written_by_others(series)
    assert read_segments(dataset, grid)
    spoil(dataset)
    with pytest.raises(LabelError, match=said):
        read_segments(dataset, grid)


def test_a_segment_of_no_label_is_named_and_not_guessed(series):
    dataset, grid, _ = written_by_others(series)
    dataset.SegmentSequence[1].SegmentLabel = "tumour"
    with pytest.raises(
        LabelError, match="segment 'tumour' is not one of the labels; allowed: liver, spleen, kidney"
    ):
        read_segments(dataset, grid).as_labels(LABELS)


@pytest.mark.parametrize("rgb", [(255, 0, 0), (0, 128, 0), (20, 30, 200), (255, 255, 255), (0, 0, 0)])
def test_colours_come_back(rgb):
    assert from_dicom_lab(to_dicom_lab(rgb)) == pytest.approx(rgb, abs=24)
