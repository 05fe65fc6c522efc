"""Made abdomen CTs with known organs, to try the whole loop without any patient's data."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from lib.volume import Volume

LABELS = {"liver": 1, "spleen": 2, "kidney": 3}

_AIR_HU, _FAT_HU, _WALL_HU, _BOWEL_HU, _BONE_HU, _AORTA_HU = -1000.0, -90.0, 50.0, 20.0, 260.0, 190.0
_ORGAN_HU = {"liver": 105.0, "spleen": 130.0, "kidney": 170.0}
_NOISE_HU, _TEXTURE_HU = 12.0, 6.0
_BODY_RADII_MM = (150.0, 108.0)


@dataclass(frozen=True)
class _Organ:
    """An ellipsoid in the body: millimetres to the right, to the front and up from the body's middle."""

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]


# In the order they are painted: where two overlap, the later one stays.
_ORGANS = {
    "liver": _Organ((62.0, 12.0, 8.0), (66.0, 62.0, 52.0)),
    "spleen": _Organ((-98.0, -28.0, 12.0), (26.0, 40.0, 36.0)),
    "kidney": _Organ((58.0, -58.0, -18.0), (26.0, 22.0, 38.0)),
}
_BOWEL = _Organ((-45.0, 38.0, -5.0), (42.0, 34.0, 45.0))


@dataclass(frozen=True, eq=False)
class Phantom:
    """`image` holds int16 HU, `label` (i, j, k) uint8 the values of LABELS on the same grid."""

    image: Volume
    label: NDArray[np.uint8]


def make_phantom(rng: np.random.Generator) -> Phantom:
    """One case: sizes, places, contrasts, grid and orientation differ with every draw."""
    shape = tuple(int(size) for size in rng.integers((96, 78, 26), (112, 90, 34)))
    affine = _oblique_affine(rng, shape)
    body_mm = _positions(shape, affine) + _bend(rng, shape, affine)
    hu, label = _paint(rng, body_mm)
    hu = gaussian_filter(hu, sigma=0.6) + rng.normal(scale=_NOISE_HU, size=shape)
    image = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return Phantom(Volume(image, affine), label)


def _oblique_affine(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Thick slices along k, a slight tilt, axes that may run either way; the centre is the body's middle."""
    in_plane, slices = rng.uniform(2.9, 3.2), rng.uniform(4.5, 5.5)
    signs = np.array([rng.choice((-1.0, 1.0)), rng.choice((-1.0, 1.0)), 1.0])
    tilt = Rotation.from_euler("xyz", rng.uniform(-6, 6, size=3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(signs * (in_plane, in_plane, slices))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _positions(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """RAS mm of every voxel, (3, i, j, k)."""
    index = np.indices(shape, dtype=np.float64)
    return np.einsum("ab,bijk->aijk", affine[:3, :3], index) + affine[:3, 3, None, None, None]


def _bend(
    rng: np.random.Generator, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A smooth displacement in mm, (3, i, j, k), that makes ellipsoids look grown."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    smooth = np.stack([gaussian_filter(rng.normal(size=shape), sigma=22.0 / spacing) for _ in range(3)])
    return np.asarray(smooth / smooth.std() * 6.0)


def _paint(
    rng: np.random.Generator, body_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    shape = body_mm.shape[1:]
    x, y, _ = body_mm
    size = rng.uniform(0.95, 1.02)
    rim = np.hypot(x / (_BODY_RADII_MM[0] * size), y / (_BODY_RADII_MM[1] * size))
    hu = np.select([rim > 1.0, rim > 0.9], [_AIR_HU, _WALL_HU], _FAT_HU)
    inside = rim < 0.88
    hu[_ellipsoid(body_mm, _varied(rng, _BOWEL)) & inside] = _BOWEL_HU
    label = np.zeros(shape, np.uint8)
    for name, organ in _ORGANS.items():
        there = _ellipsoid(body_mm, _varied(rng, organ)) & inside
        hu[there] = _ORGAN_HU[name] + rng.uniform(-8, 8)
        label[there] = LABELS[name]
    texture = gaussian_filter(rng.normal(size=shape), sigma=1.2)
    hu[label > 0] += (texture / texture.std() * _TEXTURE_HU)[label > 0]
    for centre_mm, radius_mm, value in (((0.0, -62.0), 20.0, _BONE_HU), ((-12.0, -30.0), 10.0, _AORTA_HU)):
        tube = np.hypot(x - centre_mm[0], y - centre_mm[1]) < radius_mm
        hu[tube], label[tube] = value, 0
    return hu, label


def _varied(rng: np.random.Generator, organ: _Organ) -> _Organ:
    centre = np.array(organ.centre_mm) + rng.uniform(-6, 6, size=3)
    radii = np.array(organ.radii_mm) * rng.uniform(0.88, 1.1, size=3)
    return _Organ((centre[0], centre[1], centre[2]), (radii[0], radii[1], radii[2]))


def _ellipsoid(body_mm: NDArray[np.float64], organ: _Organ) -> NDArray[np.bool_]:
    centre = np.array(organ.centre_mm)[:, None, None, None]
    radii = np.array(organ.radii_mm)[:, None, None, None]
    return np.asarray((((body_mm - centre) / radii) ** 2).sum(axis=0) < 1.0)
