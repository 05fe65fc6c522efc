"""DICOM Segmentations of any maker, put on the full grid of the image that they are of.

Source: DICOM PS3.3, A.51 and C.8.20 (Segmentation). A segmentation may hold only some of the slices, only a part of
each, and rows in another order than its image; every frame says where it lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.grid import SeriesGrid, numbers_of
from lib.errors import LabelError, VolumeError

# A frame's pixels have to lie on the image's voxels, as far as rounded positions go, in voxels.
OFF_GRID = 0.1


@dataclass(frozen=True, eq=False)
class Segments:
    """What a segmentation holds: `numbers` (i, j, k) has each voxel's segment, 0 for none; `names` what they are."""

    numbers: NDArray[np.uint8]
    names: Mapping[int, str]

    def as_labels(self, labels: Mapping[str, int]) -> NDArray[np.uint8]:
        """(i, j, k) with the values of `labels`. Names may differ in case, and in "_" for a blank.

        Raises LabelError naming the segments that fit none, or several: their voxels would be lost.
        """
        table = np.zeros(256, dtype=np.uint8)
        held = set(np.unique(self.numbers).tolist()) - {0}
        values = {number: _value_of(self.names[number], labels) for number in sorted(held)}
        strange = [self.names[number] for number, value in values.items() if value is None]
        if strange:
            raise LabelError(
                f"segment {', '.join(map(repr, strange))} is not one of the labels; allowed: {', '.join(labels)}"
            )
        for number, value in values.items():
            table[number] = value
        return table[self.numbers]


def referenced_series(dataset: Dataset) -> str | None:
    """The series that a segmentation is of; None where it does not say."""
    found = dataset.get("ReferencedSeriesSequence")
    return str(found[0].get("SeriesInstanceUID") or "") or None if found else None


def read_segments(dataset: Dataset, grid: SeriesGrid) -> Segments:
    """The segments of `dataset` on `grid`.

    Raises LabelError for another frame of reference, frames that do not lie on the image's voxels or lie outside, two
    segments in one voxel, and what is no segmentation.
    """
    if dataset.get("Modality") != "SEG" or "SegmentSequence" not in dataset:
        raise LabelError(
            f"Modality: {dataset.get('Modality')!r} is not accepted; allowed: SEG, a segmentation"
        )
    frame_of_reference = str(dataset.get("FrameOfReferenceUID") or "")
    if frame_of_reference != grid.frame_of_reference:
        raise LabelError(
            f"FrameOfReferenceUID: {frame_of_reference!r} is another than its image's; allowed: "
            f"{grid.frame_of_reference}"
        )
    names = _names(dataset)
    numbers = np.zeros(grid.shape_ijk, dtype=np.uint8)
    from_lps = np.linalg.inv(grid.affine_lps)
    for item, pixels in zip(_frames_of(dataset), _pixels(dataset), strict=True):
        for number, mask in _masks(item, pixels, dataset):
            if number not in names:
                raise LabelError(
                    f"ReferencedSegmentNumber: {number} is not described; allowed: {sorted(names)}"
                )
            _put(numbers, mask, number, from_lps @ _frame_affine(item, dataset), names)
    return Segments(numbers, names)


def _value_of(name: str, labels: Mapping[str, int]) -> int | None:
    if name in labels:
        return labels[name]
    like = [value for label, value in labels.items() if _plain(label) == _plain(name)]
    return like[0] if len(like) == 1 else None


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _names(dataset: Dataset) -> dict[int, str]:
    names = {int(item.SegmentNumber): str(item.get("SegmentLabel") or "") for item in dataset.SegmentSequence}
    if not names or min(names) < 1 or max(names) > 255:
        raise LabelError(f"SegmentNumber: {sorted(names)} are not accepted; allowed: 1 to 255")
    return names


def _frames_of(dataset: Dataset) -> Sequence[Dataset]:
    found = dataset.get("PerFrameFunctionalGroupsSequence")
    if not found:
        raise LabelError("PerFrameFunctionalGroupsSequence: it is missing; allowed: a place for every frame")
    return list(found)


def _pixels(dataset: Dataset) -> NDArray[np.uint8]:
    """(frames, rows, columns)."""
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # pydicom's decoders raise whatever they stumble over
        raise LabelError(
            f"PixelData: cannot be decoded ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    return np.asarray(pixels[None] if pixels.ndim == 2 else pixels)


def _masks(item: Dataset, pixels: NDArray[np.uint8], dataset: Dataset) -> list[tuple[int, NDArray[np.bool_]]]:
    """The segments of one frame, (rows, columns) each."""
    kind = str(dataset.get("SegmentationType"))
    if kind == "LABELMAP":
        return [(number, pixels == number) for number in np.unique(pixels[pixels > 0]).tolist()]
    identified = _functional_group(item, dataset, "SegmentIdentificationSequence")
    number = int(identified.ReferencedSegmentNumber)
    if kind == "FRACTIONAL":
        return [(number, pixels > int(dataset.get("MaximumFractionalValue", 255)) / 2)]
    return [(number, pixels > 0)]


def _functional_group(item: Dataset, dataset: Dataset, name: str) -> Dataset:
    """A frame's own, or the one that all frames share."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for place in (item, shared[0]):
        found = place.get(name)
        if found:
            return found[0]
    raise LabelError(f"{name}: it is missing; allowed: one for every frame, or one for all")


def _frame_affine(item: Dataset, dataset: Dataset) -> NDArray[np.float64]:
    """(4, 4) from (column, row, 0) of a frame to LPS mm."""
    position = _functional_group(item, dataset, "PlanePositionSequence").get("ImagePositionPatient")
    orientation = _functional_group(item, dataset, "PlaneOrientationSequence").get("ImageOrientationPatient")
    spacing = _functional_group(item, dataset, "PixelMeasuresSequence").get("PixelSpacing")
    try:
        directions = numbers_of("ImageOrientationPatient", orientation, 6)
        between_rows, between_columns = numbers_of("PixelSpacing", spacing, 2)
        origin = numbers_of("ImagePositionPatient", position, 3)
    except VolumeError as error:
        raise LabelError(str(error)) from error
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[:3] * between_columns, directions[3:] * between_rows
    affine[:3, 2] = np.cross(directions[:3], directions[3:])
    affine[:3, 3] = origin
    return affine


def _put(
    numbers: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    number: int,
    to_voxel: NDArray[np.float64],
    names: Mapping[int, str],
) -> None:
    """Writes `number` where `mask` (rows, columns) is, by `to_voxel` (4, 4) from (column, row, 0) to (i, j, k)."""
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return
    exact = to_voxel[:3, 0:1] * columns + to_voxel[:3, 1:2] * rows + to_voxel[:3, 3:4]
    places = np.rint(exact)
    off = float(np.abs(exact - places).max())
    if off > OFF_GRID or not _steps_by_one(to_voxel):
        raise LabelError(
            f"segment {names[number]!r}: its pixels lie {off:.2f} voxels beside the image's; allowed: the grid of the "
            "image, or a part of it"
        )
    i, j, k = places.astype(np.intp)
    bounds = np.array(numbers.shape)[:, None]
    if ((places < 0) | (places >= bounds)).any():
        raise LabelError(
            f"segment {names[number]!r}: it lies outside of the image; allowed: shape {numbers.shape}"
        )
    there = numbers[i, j, k]
    others = there[(there != 0) & (there != number)]
    if len(others):
        raise LabelError(
            f"segments {names[int(others[0])]!r} and {names[number]!r} share {len(others)} voxels of a slice; allowed: "
            "one label a voxel"
        )
    numbers[i, j, k] = number


def _steps_by_one(to_voxel: NDArray[np.float64]) -> bool:
    """Whether neighbouring pixels are neighbouring voxels, in one direction each."""
    steps = np.abs(to_voxel[:3, :2])
    return bool(np.allclose(np.sort(steps, axis=0), [[0, 0], [0, 0], [1, 1]], atol=1e-2))
