"""Points, boxes and slice numbers as a client writes them -> voxels of one volume, or an error that says what fits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.errors import InputError
from lib.prompts.promptset import Box, Voxel
from lib.transforms.geometry import in_plane_axes

MAX_POINTS = 1000
AXES = "ijk"


@dataclass(frozen=True)
class Grid:
    """The voxels that prompts are about: their number along (i, j, k), and the axis that slices are counted along."""

    shape_ijk: Voxel
    axis: int

    @property
    def slice_count(self) -> int:
        """How many slices there are."""
        return self.shape_ijk[self.axis]

    def describe(self) -> str:
        """The voxels there are, for people."""
        return ", ".join(f"{axis} 0..{size - 1}" for axis, size in zip(AXES, self.shape_ijk, strict=True))


def parse_points(request: Mapping[str, Any], key: str, grid: Grid) -> tuple[Voxel, ...]:
    """The list of [i, j, k] under `key`, rounded to the nearest voxel; none where there is nothing."""
    value = request.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InputError(key, value, "a list of points [i, j, k]")
    check_number(key, len(value))
    return tuple(_point(f"{key}[{n}]", point, grid) for n, point in enumerate(value))


def check_number(field: str, count: int) -> None:
    """Raises InputError for more points than one request may have."""
    if count > MAX_POINTS:
        raise InputError(field, f"{count} points", f"at most {MAX_POINTS} points")


def parse_slice(value: Any, grid: Grid) -> int | None:
    """The index of a slice of the volume; None where none is named."""
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value < grid.slice_count:
        raise InputError(
            "slice", value, f"a slice along {AXES[grid.axis]} of the volume: 0..{grid.slice_count - 1}"
        )
    return int(value)


def parse_roi(value: Any, grid: Grid, slice_index: int | None) -> Box | None:
    """A box from two opposite corner voxels, both inside it, in any order: [i0, i1, j0, j1, k0, k1].

    Four numbers are a box on slice `slice_index`, the lower in-plane axis first. 3D Slicer takes the corners in RAS,
    so that in an LPS image the first of a pair is the larger. Its boxes may stick out of the volume and are clipped
    to it. A box may be one slice thick, but not flat in the plane.
    """
    if value is None or (isinstance(value, list | tuple) and not value):
        return None
    pairs = _pairs(value, grid, slice_index)
    if any(pairs[axis][0] == pairs[axis][1] for axis in in_plane_axes(grid.axis)):
        raise InputError(
            "roi", value, "a box that has a volume: in its plane, two corners that differ along both axes"
        )
    start = [max(0, low) for low, _ in pairs]
    stop = [min(size, high + 1) for (_, high), size in zip(pairs, grid.shape_ijk, strict=True)]
    if any(low >= high for low, high in zip(start, stop, strict=True)):
        raise InputError("roi", value, f"a box that meets the volume: {grid.describe()}")
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _pairs(value: Any, grid: Grid, slice_index: int | None) -> list[tuple[int, int]]:
    """(lowest, highest) voxel along i, j, k; neither has to be in the volume."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        numbers = _whole_numbers("roi", value, 6, "[i0, i1, j0, j1, k0, k1]")
        return [_sorted_pair(numbers[2 * axis : 2 * axis + 2]) for axis in range(3)]
    if slice_index is None:
        raise InputError(
            "roi", value, "6 numbers [i0, i1, j0, j1, k0, k1], or 4 beside the slice they are on"
        )
    numbers = _whole_numbers("roi", value, 4, "[a0, a1, b0, b1]")
    pairs = [_sorted_pair(numbers[:2]), _sorted_pair(numbers[2:])]
    pairs.insert(grid.axis, (slice_index, slice_index))
    return pairs


def _sorted_pair(pair: Sequence[int]) -> tuple[int, int]:
    return min(pair), max(pair)


def _point(field: str, value: Any, grid: Grid) -> Voxel:
    i, j, k = _whole_numbers(field, value, 3, "[i, j, k]")
    if any(not 0 <= index < size for index, size in zip((i, j, k), grid.shape_ijk, strict=True)):
        raise InputError(field, value, f"a voxel of the volume: {grid.describe()}")
    return i, j, k


def _whole_numbers(field: str, value: Any, count: int, form: str) -> list[int]:
    if not isinstance(value, list | tuple) or len(value) != count:
        raise InputError(field, value, f"{count} numbers {form}")
    return [_nearest(field, number, value) for number in value]


def _nearest(field: str, number: Any, value: Any) -> int:
    # bool is an int in Python, and no coordinate.
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e9:
        raise InputError(field, value, "finite numbers")
    return math.floor(number + 0.5)
