"""NIfTI in colour: every way it is written, and nothing grey taken for it."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from lib.errors import VolumeError
from lib.volume import load_volume

SHAPE = (7, 5, 4)
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0, 2, 20], [0, -0.5, 0, 30], [0, 0, 0, 1.0]])


def colours(count: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (*SHAPE, count)).astype(dtype)


def fields(array: np.ndarray) -> np.ndarray:
    """(..., c) as the structure that NIfTI calls RGB24 or RGBA32."""
    dtype = np.dtype([(name, "u1") for name in "RGBA"[: array.shape[-1]]])
    return np.ascontiguousarray(array).view(dtype)[..., 0]


def written(path: Path, array: np.ndarray, intent: str | None = None) -> Path:
    image = nibabel.Nifti1Image(array, AFFINE)
    if intent is not None:
        image.header.set_intent(intent)
    nibabel.save(image, path)
    return path


def vector(array: np.ndarray) -> np.ndarray:
    """(i, j, k, c) -> (i, j, k, 1, c)."""
    return array[:, :, :, None]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("way", ["RGB24", "vector", "rgb vector", "fourth axis", "trailing axis of 1"])
def test_every_way_to_write_colours(tmp_path: Path, name: str, way: str) -> None:
    array = colours()
    stored, intent = {
        "RGB24": (fields(array), None),
        "vector": (vector(array), "vector"),
        "rgb vector": (vector(array), "rgb vector"),
        "fourth axis": (array, None),
        "trailing axis of 1": (array[..., None], None),
    }[way]
    volume = load_volume(written(tmp_path / name, stored, intent))
    assert (volume.shape_ijk, volume.channels) == (SHAPE, 3)
    assert volume.array.dtype == np.uint8
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, AFFINE)


@pytest.mark.parametrize("way", ["RGBA32", "rgba vector", "vector"])
def test_an_opaque_alpha_channel_is_dropped(tmp_path: Path, way: str) -> None:
    array = colours(4)
    array[..., 3] = 255
    stored, intent = (fields(array), None) if way == "RGBA32" else (vector(array), way)
    volume = load_volume(written(tmp_path / "a.nii", stored, intent))
    assert np.array_equal(volume.array, array[..., :3])


def test_what_shines_through_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        VolumeError, match=r"a\.nii: shape \(7, 5, 4, 4\) has an alpha channel that is not opaque"
    ):
        load_volume(written(tmp_path / "a.nii", fields(colours(4))))


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    array = colours(dtype=np.uint16) * 300
    volume = load_volume(written(tmp_path / "a.nii", vector(array), "vector"))
    assert volume.array.dtype == np.uint16
    assert np.array_equal(volume.array, array)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 4)])
def test_as_itk_and_slicer_write_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = colours()[:, :, : 1 if len(shape) == 2 else None]
    image = SimpleITK.GetImageFromArray(array.swapaxes(0, 2).squeeze(), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii.gz"))
    volume = load_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, np.diag([-1, -1, 1, 1]))


def test_one_slice_in_colour(tmp_path: Path) -> None:
    array = colours()[:, :, :1]
    for name, stored in {"a.nii": array, "b.nii": fields(array), "c.nii": fields(array)[..., 0]}.items():
        assert np.array_equal(load_volume(written(tmp_path / name, stored)).array, array)


def test_three_slices_are_no_colours(tmp_path: Path) -> None:
    array = colours()[:, :, 0]
    volume = load_volume(written(tmp_path / "a.nii", array))
    assert (volume.shape_ijk, volume.channels) == ((7, 5, 3), 1)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.int8])
def test_a_time_series_of_three_frames_is_no_colour(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(
        VolumeError,
        match=r"a\.nii: shape \(7, 5, 4, 3\) is not a volume; allowed: .* 3 colours, of type uint8",
    ):
        load_volume(written(tmp_path / "a.nii", colours(dtype=dtype)))


@pytest.mark.parametrize("intent", ["vector", "displacement vector"])
def test_a_displacement_is_no_colour(tmp_path: Path, intent: str) -> None:
    stored = vector(colours(dtype=np.float32))
    with pytest.raises(VolumeError, match=r"shape \(7, 5, 4, 1, 3\) is not a volume"):
        load_volume(written(tmp_path / "a.nii", stored, intent))


def test_bytes_the_header_calls_something_else_are_no_colour(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"shape \(7, 5, 4, 3\) is not a volume"):
        load_volume(written(tmp_path / "a.nii", colours(), "time series"))


def test_scaled_bytes_are_no_colour(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(colours(), AFFINE)
    image.header.set_slope_inter(0.5, 1.0)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(VolumeError, match=r"shape \(7, 5, 4, 3\) is not a volume"):
        load_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("count", [2, 4])
def test_two_or_four_frames_or_channels(tmp_path: Path, count: int) -> None:
    with pytest.raises(
        VolumeError, match=rf"a\.nii: shape \(7, 5, 4, {count}\) is not a volume; allowed: three"
    ):
        load_volume(written(tmp_path / "a.nii", colours(count)))


def test_colours_over_time(tmp_path: Path) -> None:
    stored = np.stack([colours()] * 2, axis=3)
    with pytest.raises(VolumeError, match=r"shape \(7, 5, 4, 2, 3\) is not a volume"):
        load_volume(written(tmp_path / "a.nii", stored, "vector"))


@pytest.mark.parametrize("shape", [(0, 5, 4), (7, 5, 0), (7, 0, 4, 3)])
def test_without_a_voxel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(VolumeError, match=r"a\.nii: shape .* is empty; allowed: at least one voxel"):
        load_volume(written(tmp_path / "a.nii", np.zeros(shape, np.uint8)))
