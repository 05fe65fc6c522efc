"""3D label maps made from nothing but random numbers, for training a base model that has seen no real data.

In the spirit of SynthSeg (Billot et al., Medical Image Analysis 2023) and SynthMorph (Hoffmann et al., IEEE TMI 2022):
a map of smooth random regions with objects laid on it. A scene is a function of space, not an array: any slice of it
is computed when it is asked for, at any resolution, and neighbouring slices belong together.

Space: x and y run from 0 to 1 along columns and rows of a slice, z is the slice's height in the same unit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

LabelArray = NDArray[np.int32]
MaskArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]

HEIGHTS = 5  # levels at which a field's knots are drawn, one to a unit of `knot_gap`
_RADIUS_RANGE = (0.016, 0.3)  # of most objects, as a share of the slice's side
_LARGE_RADIUS_RANGE = (0.15, 0.42)  # of the others: as often near the one end as near the other
_LARGE_SHARE = 0.2


@dataclass(frozen=True)
class Field:
    """A smooth random field: knots (HEIGHTS, g, g), about zero mean and unit variance at every height."""

    knots: FloatArray
    knot_gap: float

    def cut(self, z: float, size: int) -> FloatArray:
        """(size, size) at height z."""
        return upsampled(self.at(z)[None], size)[0]

    def at(self, z: float) -> FloatArray:
        """The knots (g, g) at height z. The two weights' squares add up to one, so the variance stays."""
        place = float(np.clip(z / self.knot_gap + HEIGHTS // 2, 0, HEIGHTS - 1.001))
        lower, share = int(place), place % 1
        angle = share * np.pi / 2
        return np.asarray(np.cos(angle) * self.knots[lower] + np.sin(angle) * self.knots[lower + 1])


@dataclass(frozen=True)
class Shape:
    """One object: where it is, how it leans with z, and its outline.

    Radii are shares of a slice's side, `turn` is in radians, `lean_xy` how far it moves for each unit of z. `power` is
    the p of the outline's p-norm; `harmonics` (n, 2) bend it: amplitude and phase of the waves 2, 3, ... around it;
    `bite_xy` is where a disc is missing, in radii. Within `core` of the outline lies another region, or, where it is
    not the shape's own, what was there before. A `curve` leaves only a band along a line: a tube lying in the slice.
    """

    centre_xyz: tuple[float, float, float]
    radii_xyz: tuple[float, float, float]
    turn: float
    lean_xy: tuple[float, float]
    power: float
    harmonics: FloatArray
    bite_xy: tuple[float, float] | None
    core: float
    core_is_own: bool
    curve: Field | None = None
    curve_width: float = 0.0


@dataclass(frozen=True)
class LabelSlice:
    """A slice of a scene: `labels` (S, S) with values from 0, and its objects (S, S), each as far as it is seen.

    An object's key are the label values that it is made of, the same in every slice of the scene.
    """

    labels: LabelArray
    objects: dict[tuple[int, ...], MaskArray]


@dataclass(frozen=True)
class Scene:
    """Regions (by the largest of `regions`), perhaps inside a body, and `shapes` laid upon them in order."""

    regions: list[Field]
    body: Shape | None
    shapes: list[Shape]

    def cut(self, z: float, size: int) -> LabelSlice:
        """The slice at height z, size x size pixels."""
        labels = (
            upsampled(np.stack([region.at(z) for region in self.regions]), size).argmax(0).astype(np.int32)
        )
        if self.body is not None:
            labels[outside(self.body, z, size)] = 0
        drawn: dict[tuple[int, ...], MaskArray] = {}
        for index, shape in enumerate(self.shapes):
            # Two values a shape, whether it is in this slice or not: a value means the same in every slice.
            drawn |= _lay(labels, shape, len(self.regions) + 2 * index, z)
        return LabelSlice(labels, {key: mask & np.isin(labels, key) for key, mask in drawn.items()})

    @property
    def label_count(self) -> int:
        """One more than the largest value."""
        return len(self.regions) + 2 * len(self.shapes)


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene with up to 16 objects of very different sizes."""
    count, grid = int(rng.integers(2, 10)), int(rng.integers(3, 12))
    gap = rng.uniform(0.08, 0.3)
    regions = [Field(_knots(rng, grid), gap) for _ in range(count)]
    body = _body(rng) if rng.random() < 0.5 else None
    # Few now and then: a large one is then seen whole, not as the ground that others lie on.
    most = 5 if rng.random() < 0.25 else 17
    shapes = [_draw_shape(rng) for _ in range(int(rng.integers(2, most)))]
    # Large ones first: what is small would otherwise be covered.
    shapes.sort(key=lambda shape: -shape.radii_xyz[0] * rng.uniform(0.5, 2.0))
    return Scene(regions, body, shapes)


def upsampled(coarse: FloatArray, size: int) -> FloatArray:
    """(n, g, g) -> (n, size, size), bicubic."""
    tensor = torch.from_numpy(np.ascontiguousarray(coarse, dtype=np.float32))[None]
    return functional.interpolate(tensor, size=(size, size), mode="bicubic", align_corners=True)[0].numpy()


def outside(shape: Shape, z: float, size: int) -> MaskArray:
    """(size, size): what is not within the outline of `shape`."""
    return _distance(shape, z, size) > 1


def _knots(rng: np.random.Generator, grid: int) -> FloatArray:
    return rng.standard_normal((HEIGHTS, grid, grid), dtype=np.float32)


def _body(rng: np.random.Generator) -> Shape:
    radii = rng.uniform(0.3, 0.55, 2)
    return Shape(
        (0.5 + rng.normal(0, 0.05), 0.5 + rng.normal(0, 0.05), 0.0),
        (radii[0], radii[1], 3.0),
        rng.uniform(0, np.pi),
        (0.0, 0.0),
        rng.uniform(1.8, 3.5),
        _harmonics(rng, 0.08),
        None,
        0.0,
        False,
    )


def _draw_shape(rng: np.random.Generator) -> Shape:
    radius = _draw_radius(rng)
    flat = float(np.exp(rng.uniform(np.log(0.3), 0)))
    kind = rng.random()
    curve, width = None, 0.0
    if kind < 0.12:
        curve, width = (
            Field(_knots(rng, int(rng.integers(3, 7))), rng.uniform(0.1, 0.4)),
            rng.uniform(0.006, 0.035),
        )
        radius = max(radius, 0.1)
    # Some reach far up and down, as vessels and the spine do, and lean on the way.
    tall = float(np.exp(rng.uniform(np.log(0.5), np.log(8.0))))
    lean = rng.normal(0, 0.35, 2) if tall > 1.5 else (0.0, 0.0)
    radii = (radius, max(radius * flat, 0.012), max(radius * tall, 0.03))
    wall = 0.12 <= kind < 0.42
    return Shape(
        (rng.uniform(0.04, 0.96), rng.uniform(0.04, 0.96), rng.normal(0, 0.5) * radii[2]),
        radii,
        rng.uniform(0, np.pi),
        (float(lean[0]), float(lean[1])),
        float(np.exp(rng.uniform(np.log(1.3), np.log(5.0)))) if rng.random() < 0.4 else 2.0,
        _harmonics(rng, rng.choice([0.03, 0.08, 0.18])),
        (rng.normal(0, 0.9), rng.normal(0, 0.9)) if rng.random() < 0.15 else None,
        float(rng.uniform(0.3, 0.9)) if wall else 0.0,
        bool(rng.random() < 0.7),
        curve,
        width,
    )


def _draw_radius(rng: np.random.Generator) -> float:
    if rng.random() < _LARGE_SHARE:
        return float(rng.uniform(*_LARGE_RADIUS_RANGE))
    low, high = np.log(_RADIUS_RANGE)
    return float(np.exp(rng.uniform(low, high)))


def _harmonics(rng: np.random.Generator, strength: float) -> FloatArray:
    count = int(rng.integers(2, 8))
    amplitude = strength * rng.standard_normal(count) / np.sqrt(np.arange(1, count + 1))
    return np.stack([amplitude, rng.uniform(0, 2 * np.pi, count)], axis=1).astype(np.float32)


def _lay(labels: LabelArray, shape: Shape, value: int, z: float) -> dict[tuple[int, ...], MaskArray]:
    """Writes the shape into `labels`, in place; its parts that one may ask for, by their label values."""
    size = labels.shape[0]
    distance = _distance(shape, z, size)
    inside = distance <= 1
    if shape.curve is not None:
        inside &= _on_curve(shape.curve, shape.curve_width, z, size)
    if not inside.any():
        return {}
    core = distance <= shape.core if shape.core else np.zeros_like(inside)
    if shape.core_is_own or not shape.core:
        labels[inside] = value
        labels[core] = value + 1
        parts: dict[tuple[int, ...], MaskArray] = {(value, value + 1): inside}
        if core.any():
            parts |= {(value + 1,): core, (value,): inside & ~core}
        return parts
    # A wall around what was there before, as a thin organ wall or the skull is.
    labels[inside & ~core] = value
    return {(value,): inside & ~core}


def _distance(shape: Shape, z: float, size: int) -> FloatArray:
    """(size, size): distance from the axis of the shape, in units of its outline; above 1 is outside."""
    height = (z - shape.centre_xyz[2]) / shape.radii_xyz[2]
    if abs(height) >= 1:
        return np.full((size, size), np.inf, dtype=np.float32)
    shrunk = np.float32((1 - abs(height) ** 2.5) ** 0.4)
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    rise = z - shape.centre_xyz[2]
    dx = line[None, :] - np.float32(shape.centre_xyz[0] + shape.lean_xy[0] * rise)
    dy = line[:, None] - np.float32(shape.centre_xyz[1] + shape.lean_xy[1] * rise)
    cosine, sine = np.float32(np.cos(shape.turn)), np.float32(np.sin(shape.turn))
    u = (cosine * dx + sine * dy) / np.float32(shape.radii_xyz[0])
    v = (cosine * dy - sine * dx) / np.float32(shape.radii_xyz[1])
    distance = _norm(u, v, shape.power) / _outline(u, v, shape.harmonics, height) / shrunk
    if shape.bite_xy is not None:
        bitten = np.hypot(u - np.float32(shape.bite_xy[0]), v - np.float32(shape.bite_xy[1])) < 0.6
        distance = np.where(bitten, np.float32(np.inf), distance)
    return np.asarray(distance, dtype=np.float32)


def _norm(u: FloatArray, v: FloatArray, power: float) -> FloatArray:
    """The p-norm: 2 is round, less is pointed, more is square."""
    if power == 2.0:
        return np.asarray(np.hypot(u, v))
    return np.asarray((np.abs(u) ** power + np.abs(v) ** power) ** (1 / power))


def _outline(u: FloatArray, v: FloatArray, harmonics: FloatArray, height: float) -> FloatArray:
    """The radius of the outline in the direction of (u, v), about 1; it turns a little with the height."""
    if np.abs(harmonics[:, 0]).sum() < 0.02:
        return np.ones_like(u + v)
    angle = np.arctan2(v, u)
    radius = np.ones_like(angle)
    for index, (amplitude, phase) in enumerate(harmonics):
        radius += amplitude * np.cos((index + 2) * angle + phase + np.float32(height))
    return np.clip(radius, 0.3, 2.0)


def _on_curve(curve: Field, width: float, z: float, size: int) -> MaskArray:
    """(size, size): a band along a level line of the field, `width` (a share of the side) to each side."""
    values = curve.cut(z, size)
    steep = np.hypot(*np.gradient(values)) + 1e-3
    return np.asarray(np.abs(values) / steep < width * size)


def connected_region(labels: LabelArray, row: int, column: int) -> MaskArray:
    """The pixels of one value that hang together with (row, column)."""
    parts, _ = ndimage.label(labels == labels[row, column])
    return np.asarray(parts == parts[row, column])
