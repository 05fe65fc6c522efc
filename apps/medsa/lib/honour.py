"""Clicks are orders: what was clicked belongs to the mask, or does not, whatever the network thinks.

A network that has seen few such corrections answers some of them with a mask that leaves the click on the wrong side.
Then its logits are shifted around the click, as far as its own outline suggests: the annotator sees that the click did
something, and the next prompt starts from a mask that agrees with all of them. In the spirit of the refinement by
Jang and Kim (CVPR 2019), which asks for the same by optimisation, at the price of many passes through the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, from_numpy

from lib.prompts.simulate import interior_depth
from lib.transforms.geometry import PlaneGeometry

FloatArray = NDArray[np.float64]

# Chosen on made slices (docs/decisions.md): half or twice as much changes Dice in the third digit.
MARGIN = 3.0  # logit that a click which was on the wrong side gets on its own; 0.95 as a probability
# The shift is a Gaussian whose standard deviation is this share of the click's distance to the outline: people click on
# an error's middle, so the outline is about as far as the error reaches.
REACH = 0.5
LEAST_PIXELS, MOST_SHARE = 0.6, 0.1  # bounds of that deviation: mask pixels, share of the mask's side
END = 0.01  # of its height, where a shift ends: what is far away stays as it is, to the bit
ROUNDS = 4  # a shift for one click can undo a little of another's


def honour_clicks(
    logits: Tensor, points: Sequence[tuple[float, float, int]], geometry: PlaneGeometry
) -> Tensor:
    """Logits (m, m), rows y and columns x, with every click on its side of the outline, also on the voxel grid.

    `points` are (x, y, label) in model pixels within the slice, label 1 positive, 0 negative, as in `SinglePrompt`.
    Returns the same tensor where nothing was to do, else a new one. Of contradicting clicks in one place the last of
    `points` counts; clicks of both sides that are less than about a pixel of the mask apart cannot all be honoured.
    """
    if not points:
        return logits
    table = np.array(points, dtype=np.float64)
    before = logits.detach().cpu().double().numpy()
    after = _shifted(before, _Clicks(table[:, :2], np.where(table[:, 2] > 0, 1.0, -1.0), geometry))
    return logits if after is before else from_numpy(after).to(logits)


@dataclass(frozen=True)
class _Clicks:
    """Clicks at `points` (N, 2), x and y in model pixels, with `sides` (N,) of 1 or -1."""

    points: FloatArray
    sides: FloatArray
    geometry: PlaneGeometry

    @property
    def pixels(self) -> FloatArray:
        """(N, 2) as x, y in pixels of the mask."""
        return self.geometry.model_to_mask_pixels(self.points)

    def wrong(self, plane: FloatArray) -> NDArray[np.bool_]:
        """(N,): which lie on the wrong side in `plane` (m, m)."""
        return np.asarray(self.values(plane) * self.sides <= 0)

    def values(self, plane: FloatArray) -> FloatArray:
        """(N,): `plane` at the clicks, bilinear twice, over model pixels, as `logits_to_voxels` is."""
        base = np.floor(self.points)
        share, total = self.points - base, np.zeros(len(self.points))
        for corner in np.ndindex(2, 2):
            inside = (base + corner).clip(0, np.array(self.geometry.content_xy) - 1)
            places = self.geometry.model_to_mask_pixels(inside)
            weights = np.where(corner, share, 1 - share).prod(axis=1)
            total += weights * ndimage.map_coordinates(plane, places[:, ::-1].T, order=1, mode="nearest")
        return total


def _shifted(plane: FloatArray, clicks: _Clicks) -> FloatArray:
    """`plane` (m, m) itself where all clicks are on their side, else a changed copy."""
    moved = clicks.wrong(plane)
    if not moved.any():
        return plane
    reach, shifted = _reach(plane, clicks), plane
    for _ in range(ROUNDS):
        for index in np.flatnonzero(moved):
            shifted = _moved(shifted, clicks, index, reach[index])
        still = clicks.wrong(shifted)
        if not still.any():
            break
        moved = moved | still
    return shifted


def _moved(plane: FloatArray, clicks: _Clicks, index: int, reach: float) -> FloatArray:
    """`plane` with a bump at one click that gives it its margin."""
    side = clicks.sides[index]
    lacking = MARGIN - side * clicks.values(plane)[index]
    if lacking <= 0:
        return plane
    bump = _gaussian(plane.shape, clicks.pixels[index], reach)
    return np.asarray(plane + side * lacking * bump / clicks.values(bump)[index])


def _reach(plane: FloatArray, clicks: _Clicks) -> FloatArray:
    """(N,): the standard deviation of each click's shift, in mask pixels.

    It ends before the next click of the other side; without an outline it is the least.
    """
    pixels, sides, inside = clicks.pixels, clicks.sides, plane > 0
    if not inside.any():
        return np.full(len(pixels), LEAST_PIXELS)
    distances = interior_depth(inside) + ndimage.distance_transform_edt(~inside)
    columns, rows = np.rint(pixels).astype(int).clip(0, len(plane) - 1).T
    reach = REACH * distances[rows, columns]
    for index, (pixel, side) in enumerate(zip(pixels, sides, strict=True)):
        others = pixels[sides != side]
        if len(others):
            reach[index] = min(reach[index], np.hypot(*(others - pixel).T).min() / 3)
    return np.asarray(reach.clip(LEAST_PIXELS, MOST_SHARE * len(plane)))


def _gaussian(shape: tuple[int, ...], pixel: FloatArray, width: float) -> FloatArray:
    """1 at `pixel` (x, y), 0 from some distance on."""
    columns = np.exp(-0.5 * ((np.arange(shape[1]) - pixel[0]) / width) ** 2)
    rows = np.exp(-0.5 * ((np.arange(shape[0]) - pixel[1]) / width) ** 2)
    bump = np.outer(rows, columns)
    return np.where(bump < END, 0.0, bump)
