"""The made 3D label maps: of one piece, whatever slice is cut at whatever resolution."""

import numpy as np
import pytest

from lib.pretraining.scenes import Scene, connected_region, draw_scene

SIZE = 96
SEEDS = range(12)


def scene(seed: int) -> Scene:
    return draw_scene(np.random.default_rng(seed))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / max(1, first.sum() + second.sum())


def test_a_seed_gives_one_scene() -> None:
    first, again, other = (scene(seed).cut(0.0, SIZE).labels for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_consist_of_the_labels_in_their_key(seed: int) -> None:
    made = scene(seed)
    slice_ = made.cut(0.0, SIZE)
    assert slice_.labels.shape == (SIZE, SIZE)
    assert 0 <= slice_.labels.min() <= slice_.labels.max() < made.label_count
    for key, mask in slice_.objects.items():
        assert set(np.unique(slice_.labels[mask])) <= set(key)


def test_neighbouring_slices_belong_together() -> None:
    near, far = [], []
    for seed in SEEDS:
        made = scene(seed)
        here = made.cut(0.0, SIZE).objects
        for height, overlaps in ((0.01, near), (0.3, far)):
            away = made.cut(height, SIZE).objects
            overlaps += [
                dice(mask, away[key]) for key, mask in here.items() if key in away and mask.sum() > 100
            ]
    assert np.median(near) > 0.85
    assert np.median(far) < np.median(near) - 0.1


def test_a_slice_is_the_same_at_every_resolution() -> None:
    agreements = []
    for seed in SEEDS:
        coarse, fine = (scene(seed).cut(0.0, size).labels for size in (64, 192))
        agreements.append((coarse == fine[1::3, 1::3]).mean())
    assert np.median(agreements) > 0.9


def test_objects_are_of_very_different_sizes_and_some_lie_in_others() -> None:
    areas, nested = [], 0
    for seed in range(60):
        objects = scene(seed).cut(0.0, SIZE).objects
        areas += [mask.mean() for mask in objects.values() if mask.any()]
        nested += sum(len(key) == 2 and (key[1],) in objects for key in objects)
    assert np.quantile(areas, 0.1) < 0.002
    assert np.quantile(areas, 0.9) > 0.03
    assert nested > 10


def test_a_connected_region_leaves_out_its_like_elsewhere() -> None:
    labels = np.zeros((6, 6), dtype=np.int32)
    labels[:2, :2] = labels[4:, 4:] = 3
    region = connected_region(labels, 0, 1)
    assert region.sum() == 4
    assert region[:2, :2].all()
