"""Where the slices of a DICOM series lie: their order, and the grid that they are one volume on.

Source: DICOM PS3.3, C.7.6.2 (Image Plane Module). A voxel (i, j, k) is a column, a row and a slice; slices are counted
along the normal of the plane, which is row x column, whatever their instance numbers say. That is the order in which
MONAI Label's viewers count them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.errors import VolumeError

# How far a slice may lie beside the place that an even spacing gives it, and an edge point away with it, in mm.
POSITION_TOLERANCE_MM = 0.05
# Directions are stored with few digits: further apart they are other directions.
DIRECTION_TOLERANCE = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SeriesGrid:
    """The grid of a series: `affine` (4, 4) from voxel (i, j, k) to RAS mm, `shape_ijk` its number of voxels.

    `order` has for every slice k the place of its instance among those that were given.
    """

    affine: NDArray[np.float64]
    shape_ijk: tuple[int, int, int]
    order: tuple[int, ...]
    frame_of_reference: str

    @property
    def affine_lps(self) -> NDArray[np.float64]:
        """(4, 4) from voxel (i, j, k) to mm in DICOM's own axes (left, posterior, superior)."""
        return np.asarray(_LPS_TO_RAS @ self.affine)


def series_grid(instances: Sequence[Dataset]) -> SeriesGrid:
    """The grid of the instances of one series, in any order; their pixels are not looked at.

    Raises VolumeError naming the attribute, its value and what is allowed: blank identifiers, numbers that are none,
    several frames in one instance, slices of different sizes, directions or frames of reference, two in one place, a
    tilted gantry, uneven gaps.
    """
    if not instances:
        raise VolumeError("series: it has no instances; allowed: at least one image")
    for instance in instances:
        _check_names(instance)
        _check_one_frame(instance)
    for name in ("Rows", "Columns", "FrameOfReferenceUID"):
        _check_same(name, [instance.get(name) for instance in instances])
    directions = _directions(instances)
    spacing = _same_numbers("PixelSpacing", instances, 2, POSITION_TOLERANCE_MM)
    if not (spacing > 0).all():
        raise VolumeError(f"PixelSpacing: {spacing.tolist()} is not accepted; allowed: two numbers above 0")
    row, column = directions[:3], directions[3:]
    normal = np.cross(row, column)
    positions = np.array([_numbers(instance, "ImagePositionPatient", 3) for instance in instances])
    order = np.argsort(positions @ normal, kind="stable")
    step = _step(positions[order], normal, instances)
    affine = np.eye(4)
    # PixelSpacing is between rows first; a row's direction is the one in which the column counts up.
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * spacing[1], column * spacing[0], step
    affine[:3, 3] = positions[order[0]]
    first = instances[0]
    shape = (int(first.Columns), int(first.Rows), len(instances))
    return SeriesGrid(
        np.asarray(_LPS_TO_RAS @ affine), shape, tuple(order.tolist()), str(first.FrameOfReferenceUID)
    )


def numbers_of(name: str, value: Any, count: int) -> Vector:
    """`count` finite numbers from the attribute `name`; raises VolumeError otherwise.

    NaN and infinity can be written where DICOM has decimal strings, and would spread from there (CVE-2026-48705).
    """
    try:
        found = np.array([float(part) for part in value], dtype=np.float64)
    except (TypeError, ValueError):
        found = np.array([])
    if found.shape != (count,) or not np.isfinite(found).all():
        shown = None if value is None else str(value)[:200]
        raise VolumeError(f"{name}: {shown!r} is not accepted; allowed: {count} finite numbers")
    return found


def _numbers(instance: Dataset, name: str, count: int) -> Vector:
    return numbers_of(name, instance.get(name), count)


def _check_names(instance: Dataset) -> None:
    for name in _NAMES:
        if not str(instance.get(name) or "").strip():
            raise VolumeError(
                f"{name}: it is blank; allowed: a unique identifier, by which a label can refer to it"
            )


def _check_one_frame(instance: Dataset) -> None:
    frames = instance.get("NumberOfFrames")
    if frames not in (None, "", 1):
        raise VolumeError(f"NumberOfFrames: {frames} is not accepted; allowed: 1, a slice an instance")


def _check_same(name: str, values: Sequence[Any]) -> None:
    found = sorted({str(value) for value in values})
    if len(found) > 1 or values[0] in (None, ""):
        raise VolumeError(
            f"{name}: {', '.join(found)[:200]} in one series; allowed: one value for all slices"
        )


def _directions(instances: Sequence[Dataset]) -> Vector:
    """(6,): the unit vectors of a row and of a column, at right angles."""
    found = _same_numbers("ImageOrientationPatient", instances, 6, DIRECTION_TOLERANCE)
    row, column = found[:3], found[3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > DIRECTION_TOLERANCE or abs(float(row @ column)) > DIRECTION_TOLERANCE:
        raise VolumeError(
            f"ImageOrientationPatient: {found.tolist()} is not accepted; allowed: two unit vectors at right angles"
        )
    return np.concatenate([row / lengths[0], column / lengths[1]])


def _same_numbers(name: str, instances: Sequence[Dataset], count: int, tolerance: float) -> Vector:
    found = np.array([_numbers(instance, name, count) for instance in instances])
    apart = np.abs(found - found[0]).max()
    if apart > tolerance:
        raise VolumeError(
            f"{name}: differs by {apart:.4g} within the series; allowed: one value for all slices"
        )
    return np.asarray(found[0])


def _step(ordered: NDArray[np.float64], normal: Vector, instances: Sequence[Dataset]) -> Vector:
    """From one slice to the next, in mm: along the normal, and everywhere the same."""
    if len(ordered) == 1:
        return normal * _thickness(instances[0])
    step = (ordered[-1] - ordered[0]) / (len(ordered) - 1)
    gap = float(step @ normal)
    gaps = np.diff(ordered @ normal)
    if gaps.min() < POSITION_TOLERANCE_MM:
        raise VolumeError(
            "ImagePositionPatient: two slices of the series are in one place; allowed: one image for each place; a "
            "series of several phases has to be split"
        )
    aside = float(np.linalg.norm(step - gap * normal)) * (len(ordered) - 1)
    if aside > POSITION_TOLERANCE_MM:
        angle = math.degrees(math.atan2(float(np.linalg.norm(step - gap * normal)), gap))
        raise VolumeError(
            f"ImagePositionPatient: the slices are sheared by {angle:.1f} degrees (gantry tilt); allowed: slices "
            "straight above each other; resample the series first"
        )
    even = ordered[0] + np.arange(len(ordered))[:, None] * step
    if np.abs(ordered - even).max() > POSITION_TOLERANCE_MM:
        raise VolumeError(
            f"ImagePositionPatient: gaps from {gaps.min():.4g} to {gaps.max():.4g} mm; allowed: even ones (a missing "
            "slice, or a series of several parts); resample the series first"
        )
    return gap * normal


def _thickness(instance: Dataset) -> float:
    """Of a lone slice, in mm."""
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = instance.get(name)
        if value not in (None, ""):
            found = abs(float(numbers_of(name, [value], 1)[0]))
            if found > 0:
                return found
    return 1.0
