"""The one map between voxels of a volume and pixels of the model, and its inverse.

A volume is looked at slice by slice along one axis. Of the two axes left, the lower-numbered one is u and
becomes the model's x (columns), the other is v and becomes y (rows). The longer side in mm fills the model's
square image, the shorter one keeps its proportion (to half a pixel), and the rest is padded on the right and
at the bottom.

Both grids count from the centre of their first element: voxel u covers the edges u to u + 1, which are
scaled, and SAM's pixel index is an edge coordinate less one half. Images, points, boxes and masks all use
this one scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

AxisChoice = Literal["auto", "i", "j", "k"]
MASK_LOGIT = 8.0  # certainty of a mask prompt; sigmoid(8) = 0.9997


def slice_axis(
    spacing_mm: Sequence[float], choice: AxisChoice = "auto", shape_ijk: Sequence[int] | None = None
) -> int:
    """The axis to slice along: the one chosen, or that with the largest spacing (the last of equal ones).

    With `shape_ijk`, an axis of a single voxel comes before all others: a lone slice says nothing true of the distance
    to the next one, and across it there are only lines to look at.
    """
    if choice != "auto":
        return "ijk".index(choice)
    rounded = [round(float(spacing), 4) for spacing in spacing_mm]  # an oblique affine leaves noise in them
    alone = [shape_ijk is not None and shape_ijk[axis] == 1 for axis in range(3)]
    return max(range(3), key=lambda axis: (alone[axis], rounded[axis], axis))


def in_plane_axes(axis: int) -> tuple[int, int]:
    """The axes (u, v) of the slices along `axis`."""
    u, v = (other for other in range(3) if other != axis)
    return u, v


def split_point(point_ijk: tuple[int, int, int], axis: int) -> tuple[int, tuple[int, int]]:
    """A voxel as (its slice's index, (u, v) in that slice)."""
    u, v = in_plane_axes(axis)
    return point_ijk[axis], (point_ijk[u], point_ijk[v])


def take_planes(array: NDArray[Any], axis: int, indices: Sequence[int]) -> NDArray[Any]:
    """Slices of `array` (i, j, k) as a copy (B, n_u, n_v), B in the order of `indices`; colours stay behind."""
    return np.moveaxis(array, axis, 0)[list(indices)]


def put_planes(target: NDArray[Any], planes: NDArray[Any], axis: int, indices: Sequence[int]) -> None:
    """Writes `planes` (B, n_u, n_v) into `target` (i, j, k), in place; the inverse of `take_planes`."""
    np.moveaxis(target, axis, 0)[list(indices)] = planes


@dataclass(frozen=True)
class PlaneGeometry:
    """The map for the slices of one volume along one axis.

    `size_uv` in voxels, `spacing_uv` in mm, `image_size` in model pixels, `mask_size` the side of the mask
    logits.
    """

    size_uv: tuple[int, int]
    spacing_uv: tuple[float, float]
    image_size: int
    mask_size: int

    @property
    def content_xy(self) -> tuple[int, int]:
        """Width and height of the slice in model pixels; the rest of the square is padding."""
        extents = [n * spacing for n, spacing in zip(self.size_uv, self.spacing_uv, strict=True)]
        width, height = (max(1, round(self.image_size * extent / max(extents))) for extent in extents)
        return width, height

    @property
    def scale_xy(self) -> NDArray[np.float64]:
        """Model pixels per voxel along x (u) and y (v)."""
        return np.asarray(self.content_xy, dtype=np.float64) / np.asarray(self.size_uv)

    def points_to_model(self, points_uv: NDArray[Any]) -> NDArray[np.float64]:
        """Voxel centres (N, 2) as u, v to model pixels (N, 2) as x, y, 0 being the first pixel's centre."""
        edges = np.asarray(points_uv, dtype=np.float64).reshape(-1, 2) + 0.5
        return edges * self.scale_xy - 0.5

    def points_to_voxel(self, points_xy: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of `points_to_model`; not rounded."""
        edges = np.asarray(points_xy, dtype=np.float64).reshape(-1, 2) + 0.5
        return edges / self.scale_xy - 0.5

    def mask_pixels_to_model(self, pixels_xy: NDArray[Any]) -> NDArray[np.float64]:
        """Pixels (N, 2) of a mask of the model, as column, row, to model pixels (N, 2) as x, y."""
        pixels = np.asarray(pixels_xy, dtype=np.float64).reshape(-1, 2)
        return (pixels + 0.5) * (self.image_size / self.mask_size) - 0.5

    def model_to_mask_pixels(self, points_xy: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of `mask_pixels_to_model`; not rounded."""
        points = np.asarray(points_xy, dtype=np.float64).reshape(-1, 2)
        return (points + 0.5) * (self.mask_size / self.image_size) - 0.5

    def boxes_to_model(self, boxes_uv: NDArray[Any]) -> NDArray[np.float64]:
        """Half-open voxel boxes (N, 4), u0 v0 u1 v1, to model boxes (N, 4), x0 y0 x1 y1."""
        edges = np.asarray(boxes_uv, dtype=np.float64).reshape(-1, 4)
        return edges * np.tile(self.scale_xy, 2) - 0.5

    def planes_to_model(self, planes: Tensor) -> Tensor:
        """Slices (B, n_u, n_v) or in colour (B, n_u, n_v, 3), float, to (B, 3, S, S).

        Rows are v, columns u, padding is 0; grey is the same in all three channels.
        """
        width, height = self.content_xy
        rows = planes.transpose(1, 2).unsqueeze(1) if planes.ndim == 3 else planes.permute(0, 3, 2, 1)
        content = functional.interpolate(
            rows, size=(height, width), mode="bilinear", align_corners=False, antialias=True
        )
        padded = functional.pad(content, (0, self.image_size - width, 0, self.image_size - height))
        return padded.expand(-1, 3, -1, -1)

    def logits_to_voxels(self, logits: Tensor) -> Tensor:
        """Mask logits (B, m, m) of the model to logits (B, n_u, n_v) at the voxel centres."""
        width, height = self.content_xy
        size_u, size_v = self.size_uv
        image = _bilinear(logits.float().unsqueeze(1), self.image_size, self.image_size)
        return _bilinear(image[..., :height, :width], size_v, size_u).squeeze(1).transpose(1, 2)

    def masks_to_logits(self, masks: Tensor) -> Tensor:
        """Masks (B, n_u, n_v) in 0..1 to mask prompts (B, m, m) in -8..8; padding is -8.

        Each prompt pixel gets the mean of the mask over its area.
        """
        columns, rows = (
            _overlaps(size, scale * self.mask_size / self.image_size, self.mask_size).to(masks.device)
            for size, scale in zip(self.size_uv, self.scale_xy, strict=True)
        )
        share = rows @ masks.float().transpose(1, 2) @ columns.T
        return MASK_LOGIT * (2.0 * share.clamp(0.0, 1.0) - 1.0)


def plane_geometry(
    volume_shape: Sequence[int], spacing_mm: Sequence[float], axis: int, image_size: int, mask_size: int
) -> PlaneGeometry:
    """The map for the slices along `axis` of a volume with shape (i, j, k) and spacing in mm."""
    u, v = in_plane_axes(axis)
    return PlaneGeometry(
        (int(volume_shape[u]), int(volume_shape[v])),
        (float(spacing_mm[u]), float(spacing_mm[v])),
        image_size,
        mask_size,
    )


def _bilinear(images: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)


def _overlaps(voxels: int, pixels_per_voxel: float, pixels: int) -> Tensor:
    """(pixels, voxels): which share of each pixel each voxel covers; a row of padding is 0."""
    starts = np.arange(pixels)[:, None] / pixels_per_voxel
    stops = np.arange(1, pixels + 1)[:, None] / pixels_per_voxel
    index = np.arange(voxels)[None, :]
    covered = np.clip(np.minimum(stops, index + 1) - np.maximum(starts, index), 0.0, None)
    return torch.from_numpy((covered * pixels_per_voxel).astype(np.float32))
