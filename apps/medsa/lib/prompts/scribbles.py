"""Strokes painted into a volume -> clicks: a few well-spread voxels of each stroke on each slice.

Pure and without chance: the same strokes give the same clicks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lib.prompts.coordinates import MAX_POINTS
from lib.prompts.promptset import Voxel
from lib.prompts.simulate import BoolArray, interior_depth
from lib.transforms.geometry import in_plane_axes

POINTS_PER_SLICE = 8


def stroke_points(
    positive: BoolArray, negative: BoolArray, axis: int, spacing_mm: Sequence[float]
) -> tuple[tuple[Voxel, ...], tuple[Voxel, ...]]:
    """Clicks for strokes of the object and of what is not it, both bool (i, j, k).

    At most 8 of each sort on a slice along `axis`. More than 1000 in all are thinned by leaving out slices, evenly.
    """
    counts = [_counts(strokes, axis) for strokes in (positive, negative)]
    total = sum(int(count.sum()) for count in counts)
    kept = []
    for count in counts:
        kept.append(_thinned(count, _share(int(count.sum()), total)))
    return (
        _points(positive, axis, spacing_mm, kept[0]),
        _points(negative, axis, spacing_mm, kept[1]),
    )


def spread_points(plane: BoolArray, spacing_uv: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Up to `count` pixels of `plane` (u, v): the most interior one, then always the farthest from all, in mm."""
    pixels = np.argwhere(plane)
    if not len(pixels):
        return []
    low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
    window = plane[low[0] : high[0], low[1] : high[1]]
    depth = interior_depth(window, spacing_uv)[tuple((pixels - low).T)]
    places = pixels * np.asarray(spacing_uv)
    chosen = [int(depth.argmax())]
    distance = np.linalg.norm(places - places[chosen[0]], axis=1)
    while len(chosen) < min(count, len(pixels)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return [(int(u), int(v)) for u, v in pixels[chosen]]


def _share(count: int, total: int) -> int:
    """How many of all clicks allowed one sort gets; a slice's worth at least, so that no sort goes missing."""
    if total <= MAX_POINTS:
        return count
    return POINTS_PER_SLICE + (MAX_POINTS - 2 * POINTS_PER_SLICE) * count // total


def _counts(strokes: BoolArray, axis: int) -> NDArray[np.int64]:
    """How many clicks each slice gets."""
    voxels = np.count_nonzero(strokes, axis=in_plane_axes(axis))
    return np.minimum(voxels, POINTS_PER_SLICE).astype(np.int64)


def _thinned(counts: NDArray[np.int64], allowed: int) -> list[int]:
    """Slices whose clicks are at most `allowed`, evenly from all that have any; the first and the last stay longest."""
    slices = np.flatnonzero(counts)
    for number in range(len(slices), 0, -1):
        kept = slices[np.unique(np.linspace(0, len(slices) - 1, number).round().astype(int))]
        if counts[kept].sum() <= allowed:
            return kept.tolist()
    return []


def _points(
    strokes: BoolArray, axis: int, spacing_mm: Sequence[float], slices: Sequence[int]
) -> tuple[Voxel, ...]:
    u_axis, v_axis = in_plane_axes(axis)
    points: list[Voxel] = []
    for index in slices:
        plane = np.take(strokes, index, axis=axis)
        for pixel in spread_points(plane, (spacing_mm[u_axis], spacing_mm[v_axis]), POINTS_PER_SLICE):
            point = list(pixel)
            point.insert(axis, index)
            points.append((point[0], point[1], point[2]))
    return tuple(points)
