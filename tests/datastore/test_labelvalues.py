"""Viewers number their segments as they like; what is stored are the task's values."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.datastore.labelvalues import parse_label_info, read_label
from lib.errors import InputError, LabelError
from lib.volume import Volume, save_mask

LABELS = {"liver": 1, "spleen": 2, "kidney": 9}


@pytest.fixture
def image() -> Volume:
    return Volume(np.zeros((4, 3, 2), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))


@pytest.fixture
def voxels() -> np.ndarray:
    """Value 1 at (0,0,0), 2 at (3,1,0), 3 at (2,2,1)."""
    values = np.zeros((4, 3, 2), np.uint8)
    values[0, 0, 0], values[3, 1, 0], values[2, 2, 1] = 1, 2, 3
    return values


def stored(voxels: np.ndarray, image: Volume, folder: Path, suffix: str) -> Path:
    path = folder / f"label{suffix}"
    raw = voxels.tobytes(order="F")
    if suffix == ".bin":
        path.write_bytes(raw)
    elif suffix == ".bin.gz":
        path.write_bytes(gzip.compress(raw))
    else:
        save_mask(voxels, image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".bin", ".bin.gz"])
def test_maps_by_name_not_by_position(image: Volume, voxels: np.ndarray, tmp_path: Path, suffix: str) -> None:
    sent = [{"name": "kidney", "idx": 1}, {"name": "liver", "idx": 2}, {"name": "spleen", "idx": 3}]
    found = read_label(stored(voxels, image, tmp_path, suffix), image, LABELS, sent)
    assert (found[0, 0, 0], found[3, 1, 0], found[2, 2, 1]) == (9, 1, 2)
    assert np.count_nonzero(found) == 3


def test_segments_without_voxels_may_have_any_name(image: Volume, voxels: np.ndarray, tmp_path: Path) -> None:
    sent = [
        {"name": "liver", "idx": 3, "color": [1, 2, 3]},
        {"name": "background", "idx": 1},
        {"name": "spleen", "idx": 2},
        {"name": "scratch", "idx": 4},
    ]
    found = read_label(stored(voxels, image, tmp_path, ".nii.gz"), image, LABELS, sent)
    assert (found[0, 0, 0], found[3, 1, 0], found[2, 2, 1]) == (0, 2, 1)


def test_a_used_segment_needs_a_known_name(image: Volume, voxels: np.ndarray, tmp_path: Path) -> None:
    sent = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}, {"name": "cyst", "idx": 3}]
    with pytest.raises(LabelError, match="'cyst' \\(value 3\\)"):
        read_label(stored(voxels, image, tmp_path, ".nii.gz"), image, LABELS, sent)


@pytest.mark.parametrize("suffix", [".nii.gz", ".bin"])
@pytest.mark.parametrize("sent", [None, [], [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]])
def test_a_value_without_a_name_is_refused(
    image: Volume, voxels: np.ndarray, tmp_path: Path, suffix: str, sent: Any
) -> None:
    with pytest.raises(LabelError, match="value 3"):
        read_label(stored(voxels, image, tmp_path, suffix), image, LABELS, sent)


@pytest.mark.parametrize("suffix", [".nii.gz", ".bin"])
def test_without_names_the_tasks_values_are_taken(
    image: Volume, voxels: np.ndarray, tmp_path: Path, suffix: str
) -> None:
    voxels[voxels == 3] = 9
    found = read_label(stored(voxels, image, tmp_path, suffix), image, LABELS)
    assert np.array_equal(found, voxels)


def test_raw_voxels_are_one_for_each_voxel_of_a_colour_image(
    image: Volume, voxels: np.ndarray, tmp_path: Path
) -> None:
    colour = Volume(np.stack([image.array] * 3, axis=-1), image.affine)
    voxels[voxels == 3] = 9
    found = read_label(stored(voxels, image, tmp_path, ".bin"), colour, LABELS)
    assert np.array_equal(found, voxels)
    (tmp_path / "label.bin").write_bytes(bytes(72))
    with pytest.raises(LabelError, match="more was sent; shape \\(4, 3, 2\\) needs 24"):
        read_label(tmp_path / "label.bin", colour, LABELS)


def test_raw_voxels_of_another_size_are_refused(image: Volume, tmp_path: Path) -> None:
    (tmp_path / "label.bin").write_bytes(bytes(23))
    with pytest.raises(LabelError, match="23 bytes were sent; shape \\(4, 3, 2\\) needs 24"):
        read_label(tmp_path / "label.bin", image, LABELS)


def test_what_unpacks_to_more_than_the_image_is_refused_before_it_is_unpacked(
    image: Volume, tmp_path: Path
) -> None:
    path = tmp_path / "label.bin.gz"
    path.write_bytes(gzip.compress(bytes(1 << 26)))
    tracemalloc.start()
    with pytest.raises(LabelError, match="more was sent; shape \\(4, 3, 2\\) needs 24"):
        read_label(path, image, LABELS)
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [b"no gzip at all", gzip.compress(bytes(24), mtime=0)[:-9], b""], ids=["other", "cut", "empty"]
)
def test_raw_voxels_that_do_not_unpack_are_refused(image: Volume, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "label.bin.gz").write_bytes(content)
    with pytest.raises(LabelError, match=r"damaged|0 bytes were sent"):
        read_label(tmp_path / "label.bin.gz", image, LABELS)


@pytest.mark.parametrize(
    "sent",
    [
        "liver",
        {"name": "liver", "idx": 1},
        ["liver"],
        [{"name": "liver"}],
        [{"idx": 1}],
        [{"name": "", "idx": 1}],
        [{"name": "liver", "idx": True}],
        [{"name": "liver", "idx": 256}],
        [{"name": "liver", "idx": 0}],
        [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 1}],
        [{"name": "liver", "idx": 1}, {"name": "liver", "idx": 2}],
    ],
)
def test_a_malformed_list_is_refused(sent: Any) -> None:
    with pytest.raises(InputError, match="label_info"):
        parse_label_info(sent)
