"""Volumes that benchmarks/interaction.py makes itself: an object among others, with noise, the same for a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lib.transforms.geometry import slice_axis

BIG_SHAPE, BIG_SPACING_MM = (256, 256, 100), (0.8, 0.8, 2.5)
OBJECT_SLICES = 40


@dataclass(frozen=True, eq=False)
class MadeVolume:
    """An image (i, j, k) int16, its object (bool), and the spacing in mm; slices run along k."""

    image: NDArray[np.int16]
    truth: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]

    @property
    def axis(self) -> int:
        """Along which slices are taken."""
        return slice_axis(self.spacing_mm)

    def save(self, path: Path) -> None:
        """As NIfTI."""
        nibabel.save(nibabel.Nifti1Image(self.image, np.diag([*self.spacing_mm, 1.0])), path)

    def clicks(self, count: int) -> list[list[int]]:
        """`count` different voxels [i, j, k] well inside the object, on as many of its slices as there are."""
        slices = np.flatnonzero(self.truth.any(axis=(0, 1)))
        inner = slices[len(slices) // 4 : -len(slices) // 4]
        found: list[list[int]] = []
        for number in range(count):
            k = int(inner[(7 * number) % len(inner)])
            depth = ndimage.distance_transform_edt(self.truth[..., k])
            places = np.argwhere(depth >= 0.6 * depth.max())
            i, j = places[(31 * number) % len(places)]
            found.append([int(i), int(j), k])
        return found


def big_volume(seed: int = 0) -> MadeVolume:
    """256 x 256 x 100 voxels; the object reaches over exactly 40 slices."""
    return made_volume(seed, BIG_SHAPE, BIG_SPACING_MM, OBJECT_SLICES)


def made_volume(
    seed: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], object_slices: int
) -> MadeVolume:
    """A bright ellipsoid over `object_slices` slices around the middle, among darker ones, on smooth texture."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 3)
    image = 100 + 12 * coarse / coarse.std()
    for share in ((0.25, 0.3, 0.4), (0.75, 0.7, 0.6), (0.7, 0.2, 0.3)):
        inside = _ellipsoid(
            shape, [n * part for n, part in zip(shape, share, strict=True)], 0.12, shape[2] / 6
        )
        image[inside] += rng.uniform(-80, 40)
    centre = [shape[0] / 2 + rng.uniform(-4, 4), shape[1] / 2 + rng.uniform(-4, 4), shape[2] // 2 - 0.5]
    truth = _ellipsoid(shape, centre, rng.uniform(0.14, 0.2), object_slices / 2 + 0.01)
    image[truth] += 150
    image += rng.normal(0, 5, shape).astype(np.float32)
    return MadeVolume(image.astype(np.int16), truth, spacing_mm)


def _ellipsoid(
    shape: tuple[int, int, int], centre: Sequence[float], radius: float, radius_k: float
) -> NDArray[np.bool_]:
    """`radius` is a share of the slice's side, `radius_k` in slices."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    flat = ((i - centre[0]) / (radius * shape[0])) ** 2 + ((j - centre[1]) / (radius * shape[1])) ** 2
    # Blunt ends: the last slices show an outline, too, and no single voxel.
    return np.asarray(flat + np.abs((k - centre[2]) / radius_k) ** 6 <= 1)
