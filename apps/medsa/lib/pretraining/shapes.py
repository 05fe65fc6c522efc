"""Images made from nothing but random numbers, for training a base model that has seen no real data.

In the spirit of SynthSeg (Billot et al., Medical Image Analysis 2023) and SynthMorph (Hoffmann et al., IEEE TMI 2022):
draw a label map of random regions, then draw how each region looks. A plane here is (S, S), rows then columns.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

_FIELD_GRIDS = (3, 12)  # coarse grid sizes of a smooth field: from one bump a plane to a dozen
_TARGET_PIXELS = (40, 0.45)  # smallest target in pixels, largest as a share of the plane


@dataclass(frozen=True)
class SyntheticPlane:
    """`image` (S, S) float32, 0 to 255; `targets` (K, S, S) bool, the objects one may ask for."""

    image: np.ndarray
    targets: np.ndarray


def smooth_fields(rng: np.random.Generator, count: int, size: int, grid: int) -> np.ndarray:
    """`count` fields (count, size, size), zero mean, unit variance, varying over about size/grid pixels."""
    coarse = torch.from_numpy(rng.standard_normal((1, count, grid, grid), dtype=np.float32))
    fine = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0].numpy()
    return (fine - fine.mean((1, 2), keepdims=True)) / (fine.std((1, 2), keepdims=True) + 1e-6)


def draw_plane(rng: np.random.Generator, size: int, target_count: int) -> SyntheticPlane:
    """One image with `target_count` objects to ask for (repeated where the image holds fewer)."""
    while True:
        labels, wholes = _draw_labels(rng, size)
        targets = _pick_targets(rng, labels, wholes, target_count)
        if targets:
            break
    image = _paint(rng, labels)
    image, targets = _leave_padding(rng, image, targets)
    chosen = [targets[index % len(targets)] for index in range(target_count)]
    return SyntheticPlane(image, np.stack(chosen))


def _draw_labels(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A label map (S, S) and the shapes laid on it that can be seen, each with what lies inside it."""
    regions = int(rng.integers(2, 10))
    fields = smooth_fields(rng, regions, size, int(rng.integers(*_FIELD_GRIDS)))
    if rng.random() < 0.5:
        fields = fields + rng.uniform(0.2, 0.7) * smooth_fields(rng, regions, size, int(rng.integers(12, 32)))
    labels = fields.argmax(0).astype(np.int32)
    if rng.random() < 0.4:
        labels[~_ellipse(rng, size, fields[0], (0.3, 0.6))] = 0
    drawn: list[tuple[np.ndarray, list[int]]] = []
    for _ in range(int(rng.integers(1, 12))):
        shape = _draw_shape(rng, size, fields[rng.integers(regions)])
        if _is_target_size(shape.sum(), size):
            drawn.append((shape, _lay(rng, labels, shape)))
    visible = [shape & np.isin(labels, values) for shape, values in drawn]
    half_seen = [seen.sum() > 0.5 * shape.sum() for seen, (shape, _) in zip(visible, drawn, strict=True)]
    return labels, [seen for seen, keep in zip(visible, half_seen, strict=True) if keep]


def _lay(rng: np.random.Generator, labels: np.ndarray, shape: np.ndarray) -> list[int]:
    """Writes a shape into the label map, a third of the time with another region inside; its label values."""
    values = [int(labels.max()) + 1]
    labels[shape] = values[0]
    if rng.random() < 0.35:
        inside = ndimage.binary_erosion(shape, iterations=int(rng.integers(2, 9)))
        if inside.any():
            values.append(values[0] + 1)
            labels[inside] = values[1]
    return values


def _draw_shape(rng: np.random.Generator, size: int, field: np.ndarray) -> np.ndarray:
    kind = rng.random()
    if kind < 0.78:
        return _ellipse(rng, size, field, (0.015, 0.25))
    if kind < 0.90:
        return _tube(rng, size)
    ring = _ellipse(rng, size, field, (0.05, 0.25))
    return ring & ~ndimage.binary_erosion(ring, iterations=int(rng.integers(3, 14)))


def _ellipse(
    rng: np.random.Generator, size: int, field: np.ndarray, radius: tuple[float, float]
) -> np.ndarray:
    """An ellipse with a wobbling border; `radius` as shares of the plane's side."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    centre = rng.uniform(0.12, 0.88, 2) * size
    low, high = np.log(radius[0] * size), np.log(radius[1] * size)
    first = np.exp(rng.uniform(low, high))
    second = np.clip(first * np.exp(rng.uniform(-0.9, 0.9)), 3, size)
    angle = rng.uniform(0, np.pi)
    down, right = rows - centre[0], columns - centre[1]
    along = (right * np.cos(angle) + down * np.sin(angle)) / first
    across = (down * np.cos(angle) - right * np.sin(angle)) / second
    return along**2 + across**2 < 1 + rng.uniform(0, 0.35) * field


def _tube(rng: np.random.Generator, size: int) -> np.ndarray:
    """A thick curve: the pixels near one level line of a smooth field, cut to a window."""
    field = smooth_fields(rng, 1, size, int(rng.integers(3, 7)))[0]
    steep = np.hypot(*np.gradient(field)) + 1e-3
    curve = np.abs(field - rng.uniform(-0.8, 0.8)) / steep < rng.uniform(2, 9)
    height, width = rng.uniform(0.2, 0.7, 2) * size
    top, left = rng.uniform(0, size - height), rng.uniform(0, size - width)
    window = np.zeros_like(curve)
    window[int(top) : int(top + height), int(left) : int(left + width)] = True
    return curve & window


def _is_target_size(pixels: int, size: int) -> bool:
    return bool(_TARGET_PIXELS[0] <= pixels <= _TARGET_PIXELS[1] * size * size)


def _pick_targets(
    rng: np.random.Generator, labels: np.ndarray, wholes: list[np.ndarray], count: int
) -> list[np.ndarray]:
    """Half whole shapes, half connected regions found at random places."""
    targets = [wholes[index] for index in rng.permutation(len(wholes))[: count // 2]]
    for _ in range(4 * count):
        if len(targets) >= count:
            break
        row, column = rng.integers(labels.shape[0]), rng.integers(labels.shape[1])
        parts, _ = ndimage.label(labels == labels[row, column])
        region = parts == parts[row, column]
        if _is_target_size(region.sum(), labels.shape[0]):
            targets.append(region)
    return targets


def _paint(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Gives each region its grey value and texture, then blur, bias field, noise and contrast."""
    size, count = labels.shape[0], int(labels.max()) + 1
    spread = rng.uniform(0.25, 1.0)  # narrow: neighbouring organs differ little, as in CT
    grey = (rng.uniform(0, 1 - spread) + spread * rng.random(count)).astype(np.float32)
    texture_gain = (rng.uniform(0, 0.10) * rng.random(count)).astype(np.float32)
    texture = ndimage.gaussian_filter(
        rng.standard_normal((size, size), dtype=np.float32), rng.uniform(0.6, 4.0)
    )
    image = grey[labels] + texture_gain[labels] * texture / (texture.std() + 1e-6)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 2.2))
    if rng.random() < 0.5:
        image = image * (1 + rng.uniform(0, 0.3) * smooth_fields(rng, 1, size, 4)[0])
    noise = rng.standard_normal((size, size), dtype=np.float32) * rng.uniform(0, 0.09)
    if rng.random() < 0.15:
        noise = noise * (1 + 4 * image)  # speckle grows with the signal, as in ultrasound
    return _to_grey_values(rng, _coarsen(rng, image + noise))


def _coarsen(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Most volumes have fewer voxels than the model has pixels: sample down and up again."""
    if rng.random() < 0.35:
        return image
    size = image.shape[0]
    smaller = int(size / rng.uniform(1.2, 7.0))
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    small = functional.interpolate(tensor, size=(smaller, smaller), mode="area")
    back = functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return back[0, 0].numpy()


def _to_grey_values(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, [rng.uniform(0, 2), rng.uniform(98, 100)])
    scaled = np.clip((image - low) / (high - low + 1e-6), 0, 1) ** np.exp(rng.uniform(-0.5, 0.5))
    if rng.random() < 0.15:
        scaled = 1 - scaled
    return (255 * scaled).astype(np.float32)


def _leave_padding(
    rng: np.random.Generator, image: np.ndarray, targets: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Half of the planes are not square: their right or lower part is padding, without objects."""
    if rng.random() < 0.5:
        return image, targets
    edge = int(image.shape[0] * rng.uniform(0.55, 0.98))
    kept_rows, kept_columns = (edge, None) if rng.random() < 0.5 else (None, edge)
    inside = np.zeros(image.shape, dtype=bool)
    inside[:kept_rows, :kept_columns] = True
    cropped = [target & inside for target in targets]
    cropped = [target for target in cropped if target.sum() >= _TARGET_PIXELS[0]]
    return (image * inside, cropped) if cropped else (image, targets)
