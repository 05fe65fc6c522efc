"""How a label map looks: random intensities, textures, partial volume, blur, bias, noise; CT, MR or ultrasound like.

In the spirit of SynthSeg (Billot et al., Medical Image Analysis 2023). An image is (S, S), rows then columns, float32
from 0 to 255.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from lib.pretraining.scenes import FloatArray, LabelArray, upsampled


@dataclass(frozen=True)
class Palette:
    """What belongs to a label, the same in all slices of a scene: grey value, strength of texture and of a gradient."""

    grey: FloatArray
    texture: FloatArray
    gradient: FloatArray


def draw_palette(rng: np.random.Generator, count: int) -> Palette:
    """For `count` labels. Narrow ones, where neighbouring organs differ little, are as likely as wide ones."""
    spread = rng.uniform(0.25, 1.0)
    grey = rng.uniform(0, 1 - spread) + spread * rng.random(count)
    if rng.random() < 0.3:
        # Few tissues: what touches often looks the same.
        levels = np.sort(rng.random(int(rng.integers(3, 7))))
        grey = rng.choice(levels, count) + rng.normal(0, 0.02, count)
    if rng.random() < 0.5:
        grey[0] = rng.uniform(0, 0.05)  # air
    texture = rng.uniform(0, 0.12) * rng.random(count)
    gradient = rng.uniform(0, 0.12) * rng.random(count)
    return Palette(grey.astype(np.float32), texture.astype(np.float32), gradient.astype(np.float32))


def paint(rng: np.random.Generator, palette: Palette, slices: list[LabelArray], scale: float) -> FloatArray:
    """The image of `slices`, the first of which is the one that is meant; the others share its thickness.

    `scale` is the number of pixels along a side of what in the constants below is 256.
    """
    labels, size = slices[0], slices[0].shape[0]
    weights = rng.dirichlet(np.r_[4.0, np.full(len(slices) - 1, 1.5)]) if len(slices) > 1 else np.ones(1)
    weights[::-1].sort()
    image = sum(float(share) * palette.grey[one] for share, one in zip(weights, slices, strict=True))
    image = np.asarray(image, dtype=np.float32)
    grain = ndimage.gaussian_filter(
        rng.standard_normal((size, size), dtype=np.float32), rng.uniform(0.6, 4.0) * scale, truncate=2.5
    )
    image += palette.texture[labels] * grain / (grain.std() + 1e-6)
    image += palette.gradient[labels] * _field(rng, size, 5)
    image = ndimage.gaussian_filter(image, rng.uniform(0.2, 2.2) * scale, truncate=3)
    return _to_grey_values(rng, _coarsen(rng, _degrade(rng, image)))


def _degrade(rng: np.random.Generator, image: FloatArray) -> FloatArray:
    """Bias field, noise, or the speckle and shadows of ultrasound."""
    size, kind = image.shape[0], rng.random()
    if kind < 0.5:
        image = image * (1 + rng.uniform(0, 0.3) * _field(rng, size, 4))
    noise = rng.standard_normal((size, size), dtype=np.float32) * rng.uniform(0, 0.09)
    if kind > 0.85:
        noise = ndimage.gaussian_filter1d(noise, rng.uniform(0.5, 2.0), axis=1) * 2 * (0.2 + 3 * image)
        if rng.random() < 0.5:
            columns = upsampled(rng.standard_normal((1, 1, 9)).astype(np.float32).repeat(9, 1), size)[0]
            image = image * np.clip(
                1 + 0.4 * columns * np.linspace(0, 1, size, dtype=np.float32)[:, None], 0.1, 2
            )
    return np.asarray(image + noise, dtype=np.float32)


def _coarsen(rng: np.random.Generator, image: FloatArray) -> FloatArray:
    """Most volumes have fewer voxels than the model has pixels: sample down and up again."""
    if rng.random() < 0.35:
        return image
    size = image.shape[0]
    smaller = max(16, int(size / rng.uniform(1.2, 6.0)))
    wide = max(16, int(smaller * rng.uniform(0.6, 1.0))) if rng.random() < 0.2 else smaller
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    small = functional.interpolate(tensor, size=(smaller, wide), mode="area")
    back = functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return back[0, 0].numpy()


def _to_grey_values(rng: np.random.Generator, image: FloatArray) -> FloatArray:
    low, high = np.percentile(image[::2, ::2], [rng.uniform(0, 2), rng.uniform(98, 100)])
    scaled = np.clip((image - low) / (high - low + 1e-6), 0, 1) ** np.exp(rng.uniform(-0.5, 0.5))
    if rng.random() < 0.15:
        scaled = 1 - scaled
    return (255 * scaled).astype(np.float32)


def _field(rng: np.random.Generator, size: int, grid: int) -> FloatArray:
    return upsampled(rng.standard_normal((1, grid, grid), dtype=np.float32), size)[0]
