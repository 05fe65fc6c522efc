"""NRRD in colour: the colours first or last, and nothing grey taken for them."""

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK

from lib.errors import VolumeError
from lib.volume import load_volume

SHAPE = (7, 5, 4)
NONE = [np.nan] * 3
DIRECTIONS = np.array([[0.5, 0, 0], [0, 0, 0.5], [0, 2, 0.0]])
ORIGIN = np.array([-10.0, -20.0, 30.0])
RAS = np.array([[-0.5, 0, 0, 10], [0, 0, -2, 20], [0, 0.5, 0, 30], [0, 0, 0, 1.0]])


def colours(count: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (*SHAPE, count)).astype(dtype)


def written(path: Path, array: np.ndarray, kind: str | None, axis: int = 0) -> Path:
    """`array` (i, j, k, c) with the colours at `axis` (0 or 3) and their kind named, or no kinds at all."""
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "space directions": np.insert(DIRECTIONS, axis, NONE, axis=0),
        "space origin": ORIGIN,
    }
    if kind is not None:
        kinds = ["domain"] * 3
        kinds.insert(axis, kind)
        header["kinds"] = kinds
    nrrd.write(str(path), np.moveaxis(array, -1, axis), header, index_order="F")
    return path


@pytest.mark.parametrize("axis", [0, 3])
@pytest.mark.parametrize("kind", ["RGB-color", "3-color", "vector", "3-vector", "none", None])
def test_colours_first_or_last(tmp_path: Path, kind: str | None, axis: int) -> None:
    volume = load_volume(written(tmp_path / "a.nrrd", colours(), kind, axis))
    assert (volume.shape_ijk, volume.channels) == (SHAPE, 3)
    assert volume.array.dtype == np.uint8
    assert np.array_equal(volume.array, colours())
    assert np.allclose(volume.affine, RAS)


@pytest.mark.parametrize("kind", ["RGBA-color", "4-color", "vector"])
def test_an_opaque_alpha_channel_is_dropped(tmp_path: Path, kind: str) -> None:
    array = colours(4)
    array[..., 3] = 255
    assert np.array_equal(load_volume(written(tmp_path / "a.nrrd", array, kind)).array, array[..., :3])


def test_what_shines_through_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        VolumeError, match=r"a\.nrrd: shape \(7, 5, 4, 4\) has an alpha channel that is not opaque"
    ):
        load_volume(written(tmp_path / "a.nrrd", colours(4), "RGBA-color"))


@pytest.mark.parametrize("space", [2, 3])
def test_as_itk_and_slicer_write_it(tmp_path: Path, space: int) -> None:
    array = colours()[:, :, : 1 if space == 2 else None]
    image = SimpleITK.GetImageFromArray(array.swapaxes(0, 2).squeeze(), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    volume = load_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, np.diag([-1, -1, 1, 1]))


def test_one_grey_slice_in_the_plane_and_in_space(tmp_path: Path) -> None:
    array = colours()[:, :, 0, 0]
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(tmp_path / "a.nrrd"))
    volume = load_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.array, array[..., None])
    assert np.allclose(volume.affine, np.diag([-1, -1, 1, 1]))
    header = {"space": "right-anterior-superior", "space directions": DIRECTIONS[:2], "space origin": ORIGIN}
    nrrd.write(str(tmp_path / "b.nrrd"), array, header, index_order="F")
    affine = load_volume(tmp_path / "b.nrrd").affine
    assert np.allclose(affine[:3, :2].T, DIRECTIONS[:2])
    assert np.allclose(affine[:3, 2], (0, -1, 0))


def test_integers_stay(tmp_path: Path) -> None:
    large = np.full(SHAPE, 2**24 + 1, np.int32)
    header = {"space": "left-posterior-superior", "space directions": DIRECTIONS, "space origin": ORIGIN}
    nrrd.write(str(tmp_path / "a.nrrd"), large, header, index_order="F")
    loaded = load_volume(tmp_path / "a.nrrd").array
    assert loaded.dtype == np.int32
    assert np.array_equal(loaded, large)


@pytest.mark.parametrize("kind", ["list", "time", "3-gradient", "HSV-color"])
def test_an_axis_that_is_something_else(tmp_path: Path, kind: str) -> None:
    """3D Slicer writes the frames of a sequence as a list, at the place of colours."""
    with pytest.raises(
        VolumeError, match=rf"a\.nrrd: shape \(3, 7, 5, 4\) \({kind}, .* is not a volume; allowed"
    ):
        load_volume(written(tmp_path / "a.nrrd", colours(), kind))


@pytest.mark.parametrize(("kind", "dtype"), [(None, np.int16), ("none", np.float32), ("vector", np.float32)])
def test_three_values_that_need_not_be_colours(tmp_path: Path, kind: str | None, dtype: type) -> None:
    with pytest.raises(VolumeError, match=r"shape \(3, 7, 5, 4\) .* is not a volume"):
        load_volume(written(tmp_path / "a.nrrd", colours(dtype=dtype), kind))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("kind", ["vector", "none"])
def test_two_or_five_channels(tmp_path: Path, count: int, kind: str) -> None:
    with pytest.raises(VolumeError, match=rf"a\.nrrd: shape \({count}, 7, 5, 4\) \({kind}, domain, "):
        load_volume(written(tmp_path / "a.nrrd", colours(count), kind))


def test_four_axes_in_space(tmp_path: Path) -> None:
    header = {
        "space dimension": 4,
        "space directions": np.eye(4),
        "space origin": np.zeros(4),
    }
    nrrd.write(str(tmp_path / "a.nrrd"), colours(), header, index_order="F")
    with pytest.raises(VolumeError, match=r"a\.nrrd"):
        load_volume(tmp_path / "a.nrrd")


def test_without_a_voxel(tmp_path: Path) -> None:
    header = {"space": "left-posterior-superior", "space directions": DIRECTIONS, "space origin": ORIGIN}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((0, 5, 4), np.uint8), header, index_order="F")
    with pytest.raises(VolumeError, match=r"a\.nrrd: shape \(0, 5, 4\) is empty"):
        load_volume(tmp_path / "a.nrrd")
