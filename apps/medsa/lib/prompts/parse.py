"""The one place where a viewer's request becomes a PromptSet (the form MONAI Label calls `deepgrow`)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lib.errors import InputError
from lib.prompts.promptset import Box, PromptSet, Voxel

MAX_POINTS = 1000
AXES = "ijk"


def parse_request(request: Mapping[str, Any], shape_ijk: Voxel, labels: Mapping[str, int]) -> PromptSet:
    """The prompts in `request`, checked against a volume's shape and the task's labels.

    Read are `foreground` and `background` (lists of [i, j, k]), `roi` ([i0, i1, j0, j1, k0, k1]) and `label`;
    a viewer's other keys (its whole configuration, `slice`, ...) are ignored. Coordinates are rounded to the
    nearest voxel. Raises InputError naming the key, the value and what is allowed.
    """
    positive = _points(request, "foreground", shape_ijk)
    negative = _points(request, "background", shape_ijk)
    count = len(positive) + len(negative)
    if count > MAX_POINTS:
        raise InputError("foreground and background", f"{count} points", f"at most {MAX_POINTS} points")
    box = _roi(request.get("roi"), shape_ijk)
    if not positive and box is None:
        if negative:
            raise InputError("background", list(negative), "a foreground point or roi beside them")
        raise InputError("foreground", request.get("foreground"), "at least one point [i, j, k], or a roi")
    boxes = () if box is None else (box,)
    return PromptSet(positive, negative, boxes, _label(request.get("label"), labels))


def _points(request: Mapping[str, Any], key: str, shape_ijk: Voxel) -> tuple[Voxel, ...]:
    value = request.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InputError(key, value, "a list of points [i, j, k]")
    if len(value) > MAX_POINTS:
        raise InputError(key, f"{len(value)} points", f"at most {MAX_POINTS} points")
    return tuple(_point(f"{key}[{n}]", point, shape_ijk) for n, point in enumerate(value))


def _point(field: str, value: Any, shape_ijk: Voxel) -> Voxel:
    i, j, k = _whole_numbers(field, value, 3, "[i, j, k]")
    if any(not 0 <= index < size for index, size in zip((i, j, k), shape_ijk, strict=True)):
        raise InputError(field, value, f"a voxel of the volume: {_ranges(shape_ijk)}")
    return i, j, k


def _roi(value: Any, shape_ijk: Voxel) -> Box | None:
    """A box from two opposite corner voxels, both inside it, in any order.

    3D Slicer takes the corners in RAS, so that in an LPS image the first of a pair is the larger. Its boxes
    may stick out of the volume and are clipped to it.
    """
    if value is None or (isinstance(value, list | tuple) and not value):
        return None
    numbers = _whole_numbers("roi", value, 6, "[i0, i1, j0, j1, k0, k1]")
    pairs = [sorted(numbers[2 * axis : 2 * axis + 2]) for axis in range(3)]
    start = [max(0, low) for low, _ in pairs]
    stop = [min(size, high + 1) for (_, high), size in zip(pairs, shape_ijk, strict=True)]
    if any(low >= high for low, high in zip(start, stop, strict=True)):
        raise InputError("roi", value, f"a box that meets the volume: {_ranges(shape_ijk)}")
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _label(value: Any, labels: Mapping[str, int]) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value not in labels:
        raise InputError("label", value, ", ".join(labels))
    return value


def _whole_numbers(field: str, value: Any, count: int, form: str) -> list[int]:
    if not isinstance(value, list | tuple) or len(value) != count:
        raise InputError(field, value, f"{count} numbers {form}")
    return [_nearest(field, number, value) for number in value]


def _nearest(field: str, number: Any, value: Any) -> int:
    # bool is an int in Python, and no coordinate.
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e9:
        raise InputError(field, value, "finite numbers")
    return math.floor(number + 0.5)


def _ranges(shape_ijk: Sequence[int]) -> str:
    return ", ".join(f"{axis} 0..{size - 1}" for axis, size in zip(AXES, shape_ijk, strict=True))
