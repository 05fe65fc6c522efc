"""Prompts as an annotator would place them, from the true mask: for training and for evaluation.

3D masks are (i, j, k), 2D masks (u, v); a point has the mask's axis order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lib.errors import InputError
from lib.prompts.promptset import Voxel

BoolArray = NDArray[np.bool_]


def interior_point(mask: BoolArray) -> tuple[int, ...]:
    """The voxel of `mask` (any number of axes) farthest from its border, in voxels; the first of equal ones.

    Beyond the array is outside, so a mask that fills it gives its middle. Raises InputError for an empty
    mask.
    """
    window = _bounding_box(mask)
    depth = interior_depth(mask[window])
    return _offset(np.unravel_index(int(depth.argmax()), depth.shape), window)


def interior_depth(mask: BoolArray, spacing: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Distance of each voxel of `mask` (any number of axes) to the nearest one outside, 0 outside.

    In voxels, or in the unit of `spacing`. All beyond the array is outside.
    """
    padded = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)
    return np.asarray(padded[(slice(1, -1),) * mask.ndim])


def first_click(truth: BoolArray, axis: int) -> Voxel:
    """Where an annotator clicks first: in the largest slice along `axis` of the object's middle third.

    Of equal slices the one nearest to the middle, and there the most interior voxel. Raises InputError for an
    empty mask.
    """
    others = tuple(other for other in range(3) if other != axis)
    areas = truth.sum(axis=others)
    occupied = np.flatnonzero(areas)
    if not occupied.size:
        raise InputError("truth", "no voxel", "a mask with at least one voxel")
    first, last = int(occupied[0]), int(occupied[-1])
    middle, reach = (first + last) / 2, max(0.5, (last - first) / 6)
    near = [index for index in occupied.tolist() if abs(index - middle) <= reach] or occupied.tolist()
    index = min(near, key=lambda slice_: (-int(areas[slice_]), abs(slice_ - middle), slice_))
    point = list(interior_point(np.take(truth, index, axis=axis)))
    point.insert(axis, index)
    return point[0], point[1], point[2]


def next_click(
    truth: BoolArray, prediction: BoolArray, axis: int, spacing_mm: Sequence[float]
) -> tuple[Voxel, bool] | None:
    """The correcting click: (voxel, True where it adds, False where it takes away), or None without an error.

    It falls into the largest face-connected region that is missing or too much, by voxels (a missing one
    first of equal ones), at the voxel deepest inside in mm; of equally deep ones, in the slice along `axis`
    that shows most of the region.
    """
    if truth.shape != prediction.shape:
        raise InputError("prediction", prediction.shape, f"the truth's shape {truth.shape}")
    errors = truth != prediction
    if not errors.any():
        return None
    window = _bounding_box(errors)
    region, positive = _largest_region(errors[window], truth[window])
    inner = _bounding_box(region)
    point = _deepest(region[inner], axis, spacing_mm)
    i, j, k = _offset(_offset(point, inner), window)
    return (i, j, k), positive


def random_click(mask: BoolArray, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel of `mask` (u, v), likelier the deeper it lies inside. Raises InputError for an empty mask."""
    window = _bounding_box(mask)
    depth = interior_depth(mask[window]).ravel()
    drawn = int(np.searchsorted(np.cumsum(depth), rng.random() * depth.sum(), side="right"))
    shape = tuple(part.stop - part.start for part in window)
    u, v = _offset(np.unravel_index(drawn, shape), window)
    return u, v


def jittered_box(mask: BoolArray, rng: np.random.Generator, jitter: float) -> tuple[int, int, int, int]:
    """A box (u0, v0, u1, v1), half-open, around `mask` (u, v), as a hand would draw it.

    Each edge is off by up to `jitter` times the box's side, inside the plane; at least one pixel is left.
    """
    edges = []
    for part, size in zip(_bounding_box(mask), mask.shape, strict=True):
        off = rng.uniform(-jitter, jitter, size=2) * (part.stop - part.start)
        start = int(np.clip(round(part.start + off[0]), 0, size - 1))
        stop = int(np.clip(round(part.stop + off[1]), start + 1, size))
        edges.append((start, stop))
    (u0, u1), (v0, v1) = edges
    return u0, v0, u1, v1


def perturbed_mask(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """`mask` (u, v) as a model might have got it: shifted a little, grown or shrunk, with a wavy border.

    Never empty: where nothing would be left, `mask` itself.
    """
    radius = float(interior_depth(mask[_bounding_box(mask)]).max())
    margin = int(2 * radius) + 4
    window = _bounding_box(mask, margin)
    padded = np.pad(mask[window], 1)  # the distance to the border needs some outside
    signed = ndimage.distance_transform_edt(padded) - ndimage.distance_transform_edt(~padded)
    shift = rng.normal(0.0, 0.15 * radius, size=2)
    moved = ndimage.shift(signed, shift, order=1, mode="nearest")
    waves = ndimage.gaussian_filter(rng.standard_normal(padded.shape), max(1.0, radius / 2))
    waves *= 0.25 * radius / max(float(waves.std()), 1e-6)
    grown = float(np.clip(rng.normal(0.0, 0.2), -0.4, 0.4)) * radius
    cut = (moved + waves + grown > 0)[1:-1, 1:-1]
    if not cut.any():
        return mask.copy()
    result = np.zeros_like(mask)
    result[window] = cut
    return result


def _largest_region(errors: BoolArray, truth: BoolArray) -> tuple[BoolArray, bool]:
    """The largest region of errors that are all of one kind, and whether it is missing in the prediction."""
    best: tuple[int, BoolArray, bool] | None = None
    for kind, positive in ((errors & truth, True), (errors & ~truth, False)):
        components, count = ndimage.label(kind)
        if not count:
            continue
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        largest = int(sizes.argmax())
        if best is None or sizes[largest] > best[0]:
            best = int(sizes[largest]), components == largest, positive
    if best is None:
        raise InputError("errors", "no voxel", "a mask with at least one voxel")
    return best[1], best[2]


def _deepest(region: BoolArray, axis: int, spacing_mm: Sequence[float]) -> tuple[int, ...]:
    depth = interior_depth(region, spacing_mm)
    candidates = np.argwhere(depth >= depth.max() - 1e-9)
    areas = region.sum(axis=tuple(other for other in range(3) if other != axis))
    best = int(areas[candidates[:, axis]].argmax())
    return tuple(int(index) for index in candidates[best])


def _bounding_box(mask: BoolArray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest window around `mask`, with `margin` voxels more on each side as far as the array goes."""
    window = []
    for axis, size in enumerate(mask.shape):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not line.size:
            raise InputError("mask", "no voxel", "a mask with at least one voxel")
        window.append(slice(max(0, int(line[0]) - margin), min(size, int(line[-1]) + 1 + margin)))
    return tuple(window)


def _offset(point: Iterable[Any], window: Sequence[slice]) -> tuple[int, ...]:
    return tuple(int(index) + int(part.start) for index, part in zip(point, window, strict=True))
