"""The made images."""

import numpy as np
import pytest

from lib.pretraining.shapes import draw_plane, smooth_fields

SIZE = 96


def test_a_seed_gives_one_plane() -> None:
    first, again, other = (draw_plane(np.random.default_rng(seed), SIZE, 3) for seed in (4, 4, 5))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.targets, again.targets)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("seed", range(12))
def test_planes_and_targets_are_usable(seed: int) -> None:
    plane = draw_plane(np.random.default_rng(seed), SIZE, 4)
    assert plane.image.shape == (SIZE, SIZE)
    assert plane.targets.shape == (4, SIZE, SIZE)
    assert plane.image.min() >= 0
    assert plane.image.max() <= 255
    assert np.isfinite(plane.image).all()
    assert plane.image.std() > 1
    assert all(40 <= target.sum() <= 0.45 * SIZE * SIZE for target in plane.targets)


def test_objects_look_different_from_what_is_around_them() -> None:
    contrasts = []
    for seed in range(20):
        plane = draw_plane(np.random.default_rng(seed), SIZE, 4)
        for target in plane.targets:
            spread = plane.image.std()
            contrasts.append(abs(plane.image[target].mean() - plane.image[~target].mean()) / spread)
    assert np.median(contrasts) > 0.3


def test_smooth_fields_are_standardised() -> None:
    fields = smooth_fields(np.random.default_rng(0), 3, SIZE, 5)
    np.testing.assert_allclose(fields.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(fields.std((1, 2)), 1, atol=1e-4)
