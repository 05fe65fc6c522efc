"""Images and labels as stored: no axis moved, nothing resampled, everything odd refused."""

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from lib.errors import LabelError, VolumeError
from lib.volume import Volume, load_label, load_volume, save_mask


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def write_nrrd(path: Path, array: np.ndarray, **header: Any) -> Path:
    standard = {
        "space": "left-posterior-superior",
        "space directions": np.eye(3),
        "space origin": np.zeros(3),
    }
    nrrd.write(str(path), array, {**standard, **header}, index_order="F")
    return path


@pytest.fixture
def array() -> np.ndarray:
    return np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


class TestLoadVolume:
    def test_nifti_as_stored(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image = ellipsoid_case.volume
        loaded = load_volume(write_nifti(tmp_path / "a.nii.gz", image.array, image.affine))
        assert np.array_equal(loaded.array, image.array)
        assert np.allclose(loaded.affine, image.affine, atol=1e-5)
        assert loaded.spacing_mm == pytest.approx((1.0, 1.25, 2.5), abs=1e-5)
        assert loaded.shape_ijk == (24, 20, 12)

    def test_both_formats_give_the_same_grid_as_itk(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image = ellipsoid_case.volume
        nifti = write_nifti(tmp_path / "a.nii.gz", image.array, image.affine)
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(nifti)), str(tmp_path / "a.nrrd"))
        loaded = load_volume(tmp_path / "a.nrrd")
        assert np.array_equal(loaded.array, image.array)
        assert np.allclose(loaded.affine, image.affine, atol=1e-4)

    @pytest.mark.parametrize("field", ["data file", "datafile", "Data File"])
    @pytest.mark.parametrize("absolute", [True, False])
    def test_a_header_cannot_name_another_file(
        self, tmp_path: Path, array: np.ndarray, field: str, absolute: bool
    ) -> None:
        secret = tmp_path / "secret.raw"
        secret.write_bytes(array.tobytes())
        header = (
            "NRRD0004\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 5 6\n"
            "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n"
            f"{field}: {secret if absolute else secret.name}\n\n"
        )
        (tmp_path / "a.nrrd").write_text(header)
        with pytest.raises(VolumeError, match="names another data file"):
            load_volume(tmp_path / "a.nrrd")

    def test_integers_stay_and_the_rest_becomes_float32(self, tmp_path: Path, array: np.ndarray) -> None:
        assert load_volume(write_nifti(tmp_path / "a.nii", array)).array.dtype == np.int16
        assert (
            load_volume(write_nifti(tmp_path / "b.nii", array.astype(np.float64))).array.dtype == np.float32
        )
        swapped = nibabel.Nifti1Image(array, np.eye(4), nibabel.Nifti1Header(endianness=">"))
        nibabel.save(swapped, tmp_path / "c.nii")
        loaded = load_volume(tmp_path / "c.nii")
        assert loaded.array.dtype.isnative
        assert np.array_equal(loaded.array, array)

    def test_a_slope_is_applied(self, tmp_path: Path, array: np.ndarray) -> None:
        image = nibabel.Nifti1Image(array, np.eye(4))
        image.header.set_slope_inter(2.0, -1000.0)
        nibabel.save(image, tmp_path / "a.nii")
        stored = nibabel.load(tmp_path / "a.nii").get_fdata()
        assert np.allclose(load_volume(tmp_path / "a.nii").array, stored)

    def test_two_axes_become_one_slice(self, tmp_path: Path) -> None:
        plane = np.arange(20, dtype=np.uint8).reshape(4, 5)
        loaded = load_volume(write_nifti(tmp_path / "a.nii", plane))
        assert np.array_equal(loaded.array, plane[..., None])

    def test_a_last_axis_of_one_is_dropped(self, tmp_path: Path, array: np.ndarray) -> None:
        loaded = load_volume(write_nifti(tmp_path / "a.nii", array[..., None]))
        assert np.array_equal(loaded.array, array)

    @pytest.mark.parametrize(
        ("space", "signs"),
        [
            ("left-posterior-superior", (-1, -1, 1)),
            ("right-anterior-superior", (1, 1, 1)),
            ("left-anterior-superior", (-1, 1, 1)),
        ],
    )
    def test_spaces_of_nrrd(
        self, tmp_path: Path, array: np.ndarray, space: str, signs: tuple[int, int, int]
    ) -> None:
        path = write_nrrd(
            tmp_path / "a.nrrd", array, space=space, **{"space origin": np.array([10.0, 20.0, 30.0])}
        )
        affine = load_volume(path).affine
        assert np.allclose(affine[:3, :3], np.diag(signs))
        assert np.allclose(affine[:3, 3], np.array([10, 20, 30]) * signs)


class TestRefusedImages:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(VolumeError, match=r"gone\.nii\.gz: no such file"):
            load_volume(tmp_path / "gone.nii.gz")

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd"])
    def test_unreadable(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"this is no image" * 40)
        with pytest.raises(VolumeError, match="cannot be read") as caught:
            load_volume(tmp_path / name)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd"])
    def test_truncated(self, tmp_path: Path, name: str) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16), dtype=np.uint8)
        path = tmp_path / name
        write_nrrd(path, noise) if name.endswith("nrrd") else write_nifti(path, noise)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(VolumeError, match="cannot be read"):
            load_volume(path)

    def test_other_formats_are_not_even_opened(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
        with pytest.raises(
            VolumeError, match=r"unknown file type; allowed: \.nii\.gz, \.nii, \.nrrd, \.png, \.jpg, "
        ):
            load_volume(tmp_path / "a.npy")

    def test_four_axes(self, tmp_path: Path) -> None:
        with pytest.raises(VolumeError, match=r"shape \(3, 4, 5, 2\) is not a volume"):
            load_volume(write_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5, 2), np.uint8)))

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_values_that_are_not_finite(self, tmp_path: Path, array: np.ndarray, value: float) -> None:
        spoiled = array.astype(np.float64)
        spoiled[1, 2, 3] = value
        with pytest.raises(VolumeError, match="NaN or infinite"):
            load_volume(write_nifti(tmp_path / "a.nii", spoiled))

    def test_values_that_are_no_numbers(self, tmp_path: Path) -> None:
        with pytest.raises(VolumeError, match="values of type complex64 are not numbers"):
            load_volume(write_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), np.complex64)))

    def test_an_axis_without_length(self, tmp_path: Path, array: np.ndarray) -> None:
        path = write_nrrd(tmp_path / "a.nrrd", array, **{"space directions": np.diag([1.0, 1.0, 0.0])})
        with pytest.raises(VolumeError, match="spans no volume"):
            load_volume(path)

    def test_an_unknown_space(self, tmp_path: Path, array: np.ndarray) -> None:
        with pytest.raises(VolumeError, match="scanner-xyz"):
            load_volume(write_nrrd(tmp_path / "a.nrrd", array, space="scanner-xyz"))


class TestContentKey:
    def test_equal_content_has_an_equal_key(self, array: np.ndarray) -> None:
        key = Volume(array, np.eye(4)).content_key
        assert key == Volume(np.asfortranarray(array), np.eye(4)).content_key
        assert len(key) == 64

    def test_any_difference_changes_it(self, array: np.ndarray) -> None:
        other = array.copy()
        other[0, 0, 0] += 1
        keys = {
            Volume(array, np.eye(4)).content_key,
            Volume(other, np.eye(4)).content_key,
            Volume(array.reshape(5, 4, 6), np.eye(4)).content_key,
            Volume(array.view(np.uint16), np.eye(4)).content_key,
            Volume(array, np.diag([1.0, 1.0, 2.0, 1.0])).content_key,
            Volume(array.reshape(4, 5, 2, 3), np.eye(4)).content_key,
        }
        assert len(keys) == 6


class TestLoadLabel:
    def test_values_and_grid_are_kept(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image, mask = ellipsoid_case
        path = write_nifti(tmp_path / "a.nii.gz", mask.astype(np.float32), image.affine)
        label = load_label(path, image, {"object": 1})
        assert label.dtype == np.uint8
        assert np.array_equal(label, mask)

    def test_another_shape(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image, mask = ellipsoid_case
        path = write_nifti(tmp_path / "a.nii.gz", mask[:-1], image.affine)
        with pytest.raises(LabelError, match=r"shape \(23, 20, 12\) differs from its image's \(24, 20, 12\)"):
            load_label(path, image, {"object": 1})

    @pytest.mark.parametrize(("shift_mm", "fits"), [(0.0005, True), (0.01, False)])
    def test_another_affine(self, tmp_path: Path, ellipsoid_case: Any, shift_mm: float, fits: bool) -> None:
        image, mask = ellipsoid_case
        affine = image.affine.copy()
        affine[1, 3] += shift_mm
        path = write_nifti(tmp_path / "a.nii.gz", mask, affine)
        if fits:
            assert load_label(path, image, {"object": 1}).any()
        else:
            with pytest.raises(LabelError, match=r"a\.nii\.gz: affine differs"):
                load_label(path, image, {"object": 1})

    @pytest.mark.parametrize("value", [2, -1, 0.5, 300])
    def test_values_outside_the_label_set(self, tmp_path: Path, ellipsoid_case: Any, value: float) -> None:
        image, mask = ellipsoid_case
        spoiled = mask.astype(np.float32)
        spoiled[0, 0, 0] = value
        path = write_nifti(tmp_path / "a.nii.gz", spoiled, image.affine)
        with pytest.raises(
            LabelError, match=rf"value {value}\S* is not in the label set; allowed: 0, 1 object"
        ):
            load_label(path, image, {"object": 1})

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
    def test_the_image_may_be_in_colour(self, tmp_path: Path, ellipsoid_case: Any, name: str) -> None:
        image, mask = ellipsoid_case
        colour = Volume(np.stack([image.array] * 3, axis=-1), image.affine)
        save_mask(mask, colour, tmp_path / name)
        assert np.array_equal(load_label(tmp_path / name, colour, {"object": 1}), mask)

    def test_the_label_may_not(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image, mask = ellipsoid_case
        path = write_nifti(tmp_path / "a.nii.gz", np.stack([mask] * 3, axis=-1), image.affine)
        with pytest.raises(
            LabelError, match=r"a\.nii\.gz: shape \(24, 20, 12, 3\) is in colour; allowed: one"
        ):
            load_label(path, image, {"object": 1})

    @pytest.mark.parametrize("name", ["a.png", "a.jpg"])
    def test_a_picture(self, tmp_path: Path, name: str) -> None:
        """JPEG changes values, and a PNG of any spacing would seem to fit."""
        image = Volume(np.zeros((7, 5, 1), np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]))
        Image.new("L", (7, 5)).save(tmp_path / name)
        with pytest.raises(
            LabelError, match=rf"label {name}: is a picture; allowed: \.nii\.gz, \.nii, \.nrrd"
        ):
            load_label(tmp_path / name, image, {"object": 1})

    def test_unreadable(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        (tmp_path / "a.nrrd").write_bytes(b"nothing")
        with pytest.raises(LabelError, match="cannot be read"):
            load_label(tmp_path / "a.nrrd", ellipsoid_case.volume, {"object": 1})


class TestSaveMask:
    @pytest.mark.parametrize(("name", "compress"), [("m.nrrd", False), ("m.nrrd", True), ("m.nii.gz", False)])
    def test_round_trip(self, tmp_path: Path, ellipsoid_case: Any, name: str, compress: bool) -> None:
        image, mask = ellipsoid_case
        save_mask(mask, image, tmp_path / name, compress=compress)
        assert np.array_equal(load_label(tmp_path / name, image, {"object": 1}), mask)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_itk_reads_the_same_place(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image, mask = ellipsoid_case
        save_mask(mask, image, tmp_path / "m.nrrd")
        read = SimpleITK.ReadImage(str(tmp_path / "m.nrrd"))
        assert read.GetSize() == image.shape_ijk
        lps = np.array(read.TransformIndexToPhysicalPoint((13, 8, 6)))
        assert np.allclose(lps * (-1, -1, 1), (image.affine @ (13, 8, 6, 1))[:3])
        assert read[13, 8, 6] == 1

    @pytest.mark.parametrize("name", ["m.nrrd", "m.nii.gz"])
    def test_of_a_picture_it_lies_on_the_picture(self, tmp_path: Path, name: str) -> None:
        Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
        image = load_volume(tmp_path / "a.png")
        mask = np.zeros(image.shape_ijk, np.uint8)
        mask[600, 100] = 1
        save_mask(mask, image, tmp_path / name)
        picture = SimpleITK.ReadImage(str(tmp_path / "a.png"))
        read = SimpleITK.ReadImage(str(tmp_path / name))
        assert (image.shape_ijk, read.GetSize()) == ((640, 480, 1), (640, 480, 1))
        assert read[600, 100, 0] == 1
        place = read.TransformIndexToPhysicalPoint((600, 100, 0))
        assert place[:2] == picture.TransformIndexToPhysicalPoint((600, 100))

    def test_a_mask_with_colours_is_refused(self, tmp_path: Path) -> None:
        image = Volume(np.zeros((7, 5, 1, 3), np.uint8), np.eye(4))
        with pytest.raises(LabelError, match=r"shape \(7, 5, 1, 3\) is not its image's \(7, 5, 1\)"):
            save_mask(image.array, image, tmp_path / "m.nrrd")

    def test_nrrd_is_raw_and_i_runs_fastest(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image, mask = ellipsoid_case
        save_mask(mask, image, tmp_path / "m.nrrd")
        content = (tmp_path / "m.nrrd").read_bytes()
        assert b"encoding: raw" in content
        assert content.endswith(b"\n\n" + mask.tobytes(order="F"))

    def test_booleans_are_masks_too(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image, mask = ellipsoid_case
        save_mask(mask.astype(bool), image, tmp_path / "m.nii.gz")
        assert load_volume(tmp_path / "m.nii.gz").array.dtype == np.uint8

    def test_what_cannot_be_saved_leaves_the_earlier_file(self, tmp_path: Path, ellipsoid_case: Any) -> None:
        image, mask = ellipsoid_case
        path = tmp_path / "m.nrrd"
        save_mask(mask, image, path)
        before = path.read_bytes()
        with pytest.raises(LabelError, match="shape"):
            save_mask(mask[1:], image, path)
        with pytest.raises(LabelError, match="whole numbers"):
            save_mask(mask * 0.5, image, path)
        with pytest.raises(LabelError, match=r"allowed: \.nrrd, \.nii\.gz"):
            save_mask(mask, image, tmp_path / "m.png")
        assert path.read_bytes() == before
        assert [found.name for found in tmp_path.iterdir()] == ["m.nrrd"]


@pytest.mark.data
class TestRealData:
    def test_images_and_labels_agree(self, data_dir: Path) -> None:
        images = sorted((data_dir / "hippocampus_mr" / "images").iterdir())[:3]
        assert len(images) == 3
        for path in images:
            image = load_volume(path)
            label = load_label(data_dir / "hippocampus_mr" / "labels" / path.name, image, {"a": 1, "p": 2})
            assert 0 < (label > 0).mean() < 0.2

    def test_a_label_of_another_case_is_refused(self, data_dir: Path) -> None:
        image = load_volume(data_dir / "tumour_nrrd" / "brain1_image.nrrd")
        assert load_label(data_dir / "tumour_nrrd" / "brain1_label.nrrd", image, {"tumour": 1}).any()
        with pytest.raises(LabelError):
            load_label(data_dir / "tumour_nrrd" / "brain2_label.nrrd", image, {"tumour": 1})

    def test_spacing_of_oriented_volumes(self, data_dir: Path) -> None:
        image = load_volume(data_dir / "cardiac_lv_mr" / "images" / "SC-N-02_ED.nii.gz")
        assert image.spacing_mm == pytest.approx((1.37, 1.37, 8.0), abs=1e-3)
