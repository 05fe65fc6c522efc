"""Light changes of a slab and its masks, by MONAI: brightness, contrast, noise, a small move, mirrors where allowed."""

from dataclasses import replace

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandScaleIntensity,
    RandShiftIntensity,
)
from monai.transforms.spatial.array import RandAffine, RandFlip
from numpy.typing import NDArray

from lib.training.slabs import Slab

WHITE = 255.0


class Augmentation:
    """One move and one change of brightness and contrast for all slices of a slab, as between two volumes.

    Only the noise differs from slice to slice. A slab is mirrored only along its `flips`, and one with an annotator's
    own prompts is not moved at all, since they say where its voxels are. Draws what `seed` was told last.
    """

    def __init__(self, seed: int = 0) -> None:
        self._intensity = Compose(
            [
                RandScaleIntensity(factors=0.2, prob=0.5),
                RandShiftIntensity(offsets=0.1, prob=0.5),
                RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5)),
                RandGaussianNoise(prob=0.3, std=0.03),
            ]
        )
        self._affine = RandAffine(
            prob=0.5,
            rotate_range=0.25,
            shear_range=(0.1, 0.1),
            translate_range=(3.0, 3.0),
            scale_range=(0.15, 0.15),
            padding_mode="zeros",
        )
        self._mirrors = {"u": RandFlip(prob=0.5, spatial_axis=0), "v": RandFlip(prob=0.5, spatial_axis=1)}
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """From here on it draws as a new one with this seed would."""
        self._intensity.set_random_state(seed)
        for place, move in enumerate((self._affine, *self._mirrors.values())):
            move.set_random_state(seed + 1 + place)

    def __call__(self, slab: Slab) -> Slab:
        """The same slab, moved and recoloured."""
        shades = np.concatenate([_channels_first(sample.plane) for sample in slab]) / WHITE
        outlines = [outline for sample in slab for outline in (sample.target, sample.neighbour)]
        # As one image with many channels: MONAI moves them all alike, and in one call.
        moved = self._moved(np.concatenate([shades, np.stack(outlines)]).astype(np.float32), slab)
        shades = np.asarray(self._intensity(moved[: len(shades)])).clip(0.0, 1.0) * WHITE
        planes = np.split(shades.astype(np.float32), len(slab))
        masks = np.split(moved[len(shades) :] > 0.5, len(slab))
        return tuple(
            replace(sample, plane=_channels_last(plane), target=target, neighbour=neighbour)
            for sample, plane, (target, neighbour) in zip(slab, planes, masks, strict=True)
        )

    def _moved(self, stack: NDArray[np.float32], slab: Slab) -> NDArray[np.float32]:
        if any(sample.recorded is not None for sample in slab):
            return stack
        moved = self._affine(torch.from_numpy(stack))
        for axis in slab[0].flips:
            moved = self._mirrors[axis](moved)
        return torch.as_tensor(moved).numpy()


def _channels_first(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1, n_u, n_v), in colour (3, n_u, n_v): the order MONAI's transforms want."""
    return plane[None] if plane.ndim == 2 else np.moveaxis(plane, -1, 0)


def _channels_last(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of `_channels_first`."""
    return channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)
