"""The label file of a request: masks and strokes."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lib.errors import InputError, LabelError
from lib.infers.label_file import read_drawn
from lib.prompts.coordinates import Grid
from lib.prompts.parse import Drawn
from lib.volume import Volume, save_mask

SHAPE = (12, 10, 8)
IMAGE = Volume(np.zeros(SHAPE, np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
LABELS = {"liver": 1, "spleen": 2}


@pytest.fixture
def voxels() -> np.ndarray:
    """1 at k = 1, 2 at k = 2, 3 at k = 3, in the middle of each slice."""
    values = np.zeros(SHAPE, np.uint8)
    for value in (1, 2, 3):
        values[4:8, 3:7, value] = value
    return values


def write(folder: Path, values: np.ndarray, suffix: str = ".nii.gz") -> Path:
    path = folder / f"label{suffix}"
    if suffix == ".bin":
        path.write_bytes(values.astype(np.uint8).tobytes(order="F"))
    else:
        save_mask(values, IMAGE, path)
    return path


def drawn(path: Any, labels: dict[str, int] = LABELS, kind: str | None = None, **request: Any) -> Drawn:
    return read_drawn({"label_file": path, **request}, IMAGE, Grid(SHAPE, 2), labels, kind)


def inside(found: Drawn) -> np.ndarray:
    assert found.mask is not None
    return found.mask.inside


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".bin"])
def test_every_form_gives_the_same_mask(tmp_path: Path, voxels: np.ndarray, suffix: str) -> None:
    found = drawn(write(tmp_path, voxels, suffix), label="spleen")
    assert np.array_equal(inside(found), voxels == 2)
    assert found.positive_ijk == found.negative_ijk == ()


def test_a_single_value_is_the_object_whatever_its_number(tmp_path: Path, voxels: np.ndarray) -> None:
    path = write(tmp_path, 7 * (voxels == 1))
    for request in ({}, {"label": "spleen"}, {"label_info": [{"name": "mine", "idx": 7}]}):
        assert np.array_equal(inside(drawn(path, **request)), voxels == 1)


def test_the_viewers_own_numbers_count(tmp_path: Path, voxels: np.ndarray) -> None:
    info = [{"name": "spleen", "idx": 3}, {"name": "liver", "idx": 2}]
    assert np.array_equal(
        inside(drawn(write(tmp_path, voxels), label="spleen", label_info=info)), voxels == 3
    )


def test_of_several_values_without_a_name_the_only_label_is_meant(tmp_path: Path, voxels: np.ndarray) -> None:
    assert np.array_equal(inside(drawn(write(tmp_path, voxels), {"object": 1})), voxels == 1)
    with pytest.raises(InputError, match=r"label: None .* it holds the values \[1, 2, 3\]"):
        drawn(write(tmp_path, voxels))


def test_a_segment_that_the_file_does_not_name(tmp_path: Path, voxels: np.ndarray) -> None:
    with pytest.raises(InputError, match="label: 'spleen'"):
        drawn(write(tmp_path, voxels), label="spleen", label_info=[{"name": "liver", "idx": 1}])


def test_an_empty_mask_is_none(tmp_path: Path, voxels: np.ndarray) -> None:
    assert drawn(write(tmp_path, 0 * voxels)).mask is None
    assert drawn(write(tmp_path, voxels * (voxels != 2)), label="spleen").mask is None


def test_a_clients_own_text_is_no_file(tmp_path: Path, voxels: np.ndarray) -> None:
    assert drawn(str(write(tmp_path, voxels)), label="liver") == Drawn()
    assert drawn(None) == Drawn()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".bin"])
def test_another_shape_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"label{suffix}"
    other = np.ones((12, 10, 7), np.uint8)
    if suffix == ".bin":
        path.write_bytes(other.tobytes())
    else:
        save_mask(other, Volume(other, IMAGE.affine), path)
    with pytest.raises(LabelError, match="shape"):
        drawn(path)


def test_another_affine_is_refused(tmp_path: Path, voxels: np.ndarray) -> None:
    shifted = IMAGE.affine.copy()
    shifted[0, 3] = 1
    save_mask(voxels, Volume(voxels, shifted), tmp_path / "label.nrrd")
    with pytest.raises(LabelError, match="affine"):
        drawn(tmp_path / "label.nrrd")


@pytest.mark.parametrize("value", [1.5, -1.0, 300.0, np.nan])
def test_values_that_number_nothing_are_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[1, 1, 1] = value
    nibabel.save(nibabel.Nifti1Image(values, IMAGE.affine), tmp_path / "label.nii.gz")
    with pytest.raises(LabelError):
        drawn(tmp_path / "label.nii.gz")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "label.nrrd").write_bytes(b"no image")
    with pytest.raises(LabelError, match="cannot be read"):
        drawn(tmp_path / "label.nrrd")


@pytest.mark.parametrize("kind", ["strokes", 1, ["mask"]])
def test_an_unknown_kind(tmp_path: Path, voxels: np.ndarray, kind: Any) -> None:
    with pytest.raises(InputError, match=r"label_as: .* allowed: mask, scribbles"):
        drawn(write(tmp_path, voxels), label_as=kind)


@pytest.mark.parametrize("info", ["liver", [1], [{"name": "liver", "idx": 0}], [{"name": "liver"}]])
def test_malformed_names(tmp_path: Path, voxels: np.ndarray, info: Any) -> None:
    with pytest.raises(InputError, match="label_info"):
        drawn(write(tmp_path, voxels), label_info=info)


class TestStrokes:
    def test_2_is_background_and_3_foreground(self, tmp_path: Path, voxels: np.ndarray) -> None:
        found = drawn(write(tmp_path, voxels), label_as="scribbles")
        assert {point[2] for point in found.positive_ijk} == {3}
        assert {point[2] for point in found.negative_ijk} == {2}
        assert len(found.positive_ijk) == len(found.negative_ijk) == 8
        assert found.mask is None
        assert found == drawn(write(tmp_path, voxels), kind="scribbles", label_as="mask")

    def test_the_client_may_say_other_values(self, tmp_path: Path, voxels: np.ndarray) -> None:
        found = drawn(
            write(tmp_path, voxels), label_as="scribbles", scribbles_fg_label=1, scribbles_bg_label=3
        )
        assert {point[2] for point in found.positive_ijk} == {1}
        assert {point[2] for point in found.negative_ijk} == {3}

    def test_slicer_names_them_and_the_segment_to_correct(self, tmp_path: Path, voxels: np.ndarray) -> None:
        info = [
            {"name": "liver", "id": 1},
            {"name": "background_scribbles", "id": 3},
            {"name": "foreground_scribbles", "id": 2},
        ]
        path = write(tmp_path, voxels)
        found = drawn(path, label_as="scribbles", label_info=info, selected_label_name="liver")
        assert {point[2] for point in found.positive_ijk} == {2}
        assert {point[2] for point in found.negative_ijk} == {3}
        assert np.array_equal(inside(found), (voxels == 1) | (voxels == 2))
        other = drawn(path, label_as="scribbles", label_info=info, selected_label_name="spleen")
        assert other.mask is None

    def test_where_segments_are_named_the_usual_numbers_mean_nothing(
        self, tmp_path: Path, voxels: np.ndarray
    ) -> None:
        info = [{"name": name, "id": value} for value, name in enumerate(("a", "b", "c"), start=1)]
        assert drawn(write(tmp_path, voxels), label_as="scribbles", label_info=info) == Drawn()

    def test_a_roi_bounds_them(self, tmp_path: Path, voxels: np.ndarray) -> None:
        found = drawn(write(tmp_path, voxels), label_as="scribbles", roi=[5, 0, 5, 0, 7, 3])
        assert found.negative_ijk == ()
        assert found.positive_ijk
        assert all(i <= 5 and j <= 5 for i, j, _ in found.positive_ijk)

    @pytest.mark.parametrize("value", [0, 256, "3", True, 3.5])
    def test_a_value_that_no_voxel_has(self, tmp_path: Path, voxels: np.ndarray, value: Any) -> None:
        with pytest.raises(InputError, match=r"scribbles_fg_label: .* from 1 to 255"):
            drawn(write(tmp_path, voxels), label_as="scribbles", scribbles_fg_label=value)

    def test_both_the_same_value(self, tmp_path: Path, voxels: np.ndarray) -> None:
        with pytest.raises(InputError, match="another value"):
            drawn(write(tmp_path, voxels), label_as="scribbles", scribbles_fg_label=2)
