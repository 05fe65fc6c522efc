"""Which image size a training takes: large enough for the slices there are, and not larger."""

from collections.abc import Iterable

from lib.model.base import BaseSpec
from lib.training.slabs import SMALLEST_GRID
from lib.transforms.geometry import PlaneGeometry


def fitting_size(spec: BaseSpec, geometries: Iterable[PlaneGeometry]) -> int:
    """The image size of `spec` in pixels, halved as long as its masks still resolve every voxel of the slices.

    A slice of 50 voxels gains nothing from a mask of 128 pixels, and costs four times as much to encode and to decode
    as with one of 64. Never halved to fewer than SMALLEST_GRID tokens a side.
    """
    longest = max(_voxels_along(geometry) for geometry in geometries)
    size, grid = spec.image_size, spec.grid
    while grid % 2 == 0 and grid // 2 >= SMALLEST_GRID and 4 * (grid // 2) >= longest:
        size, grid = size // 2, grid // 2
    return size


def _voxels_along(geometry: PlaneGeometry) -> float:
    """How many of its finest voxels the square that holds a slice is wide."""
    extents = [count * spacing for count, spacing in zip(geometry.size_uv, geometry.spacing_uv, strict=True)]
    return max(extents) / min(geometry.spacing_uv)
