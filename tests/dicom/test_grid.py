import numpy as np
import pydicom
import pytest

from lib.dicom.grid import series_grid
from lib.dicom.image import load_series, read_headers
from lib.errors import VolumeError


@pytest.fixture
def headers(make_series):
    return read_headers(make_series()[1])


def test_a_series_is_read_as_it_was_written(geometry, make_series):
    volume, files = make_series(geometry)
    found, grid = load_series(files)
    assert found.array.dtype == np.int16
    assert np.array_equal(found.array, volume.array)
    assert np.allclose(found.affine, volume.affine, atol=1e-6)
    assert grid.shape_ijk == volume.shape_ijk


def test_the_order_of_the_files_does_not_matter(geometry, make_series):
    volume, files = make_series(geometry)
    shuffled = [files[place] for place in np.random.default_rng(0).permutation(len(files))]
    found, grid = load_series(shuffled)
    assert np.array_equal(found.array, volume.array)
    assert [shuffled[place] for place in grid.order] == files


def test_it_is_the_volume_that_monai_labels_own_reader_gives(geometry, make_series):
    """Viewers count voxels in that one."""
    from monailabel.datastore.utils.convert import dicom_to_nifti

    from lib.volume import load_volume

    _, files = make_series(geometry)
    (files[0].parent / "unneeded").mkdir()
    (files[0].parent / "unneeded").rmdir()
    theirs = load_volume(path := __import__("pathlib").Path(dicom_to_nifti(str(files[0].parent))))
    ours, _ = load_series(files)
    path.unlink()
    assert np.array_equal(theirs.array, ours.array)
    assert np.allclose(theirs.affine, ours.affine, atol=1e-3)


def test_a_lone_slice_is_as_thick_as_it_says(make_series):
    _, files = make_series(shape=(8, 6, 1))
    found, grid = load_series(files)
    assert (found.shape_ijk, grid.order) == ((8, 6, 1), (0,))
    assert found.spacing_mm == pytest.approx((0.8, 1.1, 2.5))


def test_rescaling_gives_what_the_modality_means(make_series):
    volume, files = make_series()
    for file in files:
        header = pydicom.dcmread(file)
        header.RescaleSlope, header.RescaleIntercept = "2", "-1024"
        header.save_as(file)
    assert np.array_equal(load_series(files)[0].array, volume.array.astype(int) * 2 - 1024)


def moved(headers, by_mm, axis=2, of=4):
    position = [float(value) for value in headers[of].ImagePositionPatient]
    position[axis] += by_mm
    headers[of].ImagePositionPatient = position


def sheared(headers):
    for number, header in enumerate(headers):
        position = [float(value) for value in header.ImagePositionPatient]
        header.ImagePositionPatient = [position[0], position[1] + 0.9 * number, position[2]]


def no_number(attribute, value):
    def spoil(headers):
        with pydicom.config.disable_value_validation():
            headers[2].add(pydicom.DataElement(attribute, "DS", value))

    return spoil


SPOILED = [
    (lambda headers: headers.clear(), "it has no instances"),
    (lambda headers: setattr(headers[1], "SOPInstanceUID", ""), "SOPInstanceUID: it is blank"),
    (lambda headers: setattr(headers[0], "SeriesInstanceUID", ""), "SeriesInstanceUID: it is blank"),
    (lambda headers: headers[0].pop("StudyInstanceUID"), "StudyInstanceUID: it is blank"),
    (lambda headers: headers[3].pop("ImagePositionPatient"), "ImagePositionPatient: None is not accepted"),
    (
        lambda headers: setattr(headers[3], "FrameOfReferenceUID", "1.2"),
        "FrameOfReferenceUID: .*one value for all",
    ),
    (lambda headers: setattr(headers[3], "Rows", 99), "Rows: 14, 99 in one series"),
    (
        lambda headers: setattr(headers[3], "NumberOfFrames", 3),
        "NumberOfFrames: 3 is not accepted; allowed: 1",
    ),
    (lambda headers: setattr(headers[3], "PixelSpacing", [1, 2]), "PixelSpacing: differs by 1.2"),
    (lambda headers: setattr(headers[3], "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]), "differs by 1 "),
    (lambda headers: moved(headers, -2.5), "two slices of the series are in one place"),
    (lambda headers: moved(headers, 1.0), "gaps from 1.5 to 3.5 mm; allowed: even ones"),
    (lambda headers: headers.pop(4), "gaps from 2.5 to 5 mm"),
    (lambda headers: moved(headers, 0.5, axis=0), "gaps from 2.5 to 2.5 mm"),
    (sheared, r"sheared by 19\.\d degrees \(gantry tilt\)"),
    (
        no_number("PixelSpacing", "nan\\1"),
        r"PixelSpacing: .*nan.* is not accepted; allowed: 2 finite numbers",
    ),
    (
        no_number("ImagePositionPatient", "0\\inf\\0"),
        "ImagePositionPatient: .*inf.* allowed: 3 finite numbers",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILED, ids=[said for _, said in SPOILED])
def test_what_is_no_volume_is_refused_with_the_attribute(headers, spoil, said):
    assert series_grid(headers)
    spoil(headers)
    with pytest.raises(VolumeError, match=said):
        series_grid(headers)


def test_places_that_were_rounded_are_even(headers):
    for number, header in enumerate(headers):
        header.ImagePositionPatient = [0.0, 0.0, round(number * 2.5 + 0.003 * (-1) ** number, 3)]
    assert series_grid(headers).affine[2, 2] == pytest.approx(2.5, abs=1e-2)


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("SamplesPerPixel", 3, "SamplesPerPixel: 3 is not accepted; allowed: 1"),
        ("RescaleSlope", "inf", "RescaleSlope: .*inf.* 1 finite numbers"),
        ("RescaleIntercept", "nan", "RescaleIntercept: .*nan"),
    ],
)
def test_values_that_would_spread_are_refused(make_series, attribute, value, said):
    _, files = make_series()
    header = pydicom.dcmread(files[3])
    with pydicom.config.disable_value_validation():
        setattr(header, attribute, value)
        header.save_as(files[3])
    with pytest.raises(VolumeError, match=said):
        load_series(files)


def test_a_file_that_is_no_dicom_is_named(make_series):
    _, files = make_series()
    files[2].write_bytes(b"no DICOM at all" * 20)
    with pytest.raises(VolumeError, match=f"{files[2].name}: cannot be read as DICOM"):
        load_series(files)


def test_pixels_that_are_cut_off_are_named(make_series):
    _, files = make_series()
    files[2].write_bytes(files[2].read_bytes()[:-100])
    with pytest.raises(VolumeError, match=f"{files[2].name}|pixels"):
        load_series(files)
