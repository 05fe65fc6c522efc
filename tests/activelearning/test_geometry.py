"""Distances between embeddings."""

import numpy as np
import pytest

from lib.activelearning.geometry import clusters, distance_to_nearest, typicality


def test_an_outlier_is_the_least_typical() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    rows[7] += 30
    typical = typicality(rows, np.random.default_rng(0))
    assert typical.argmin() == 7
    centre = np.linalg.norm(rows - np.median(rows, axis=0), axis=1)
    assert np.corrcoef(np.delete(typical, 7), np.delete(centre, 7))[0, 1] < -0.8


def test_typicality_of_many_is_about_the_same_from_a_sample() -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    one, other = (typicality(rows, np.random.default_rng(seed)) for seed in (1, 2))
    assert np.corrcoef(one, other)[0, 1] > 0.9


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_images(count: int) -> None:
    rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    assert np.isfinite(typicality(rows, np.random.default_rng(0))).all()
    assert clusters(rows, 8, np.random.default_rng(0)).shape == (count,)


def test_images_that_are_all_the_same() -> None:
    rows = np.ones((10, 3), np.float32)
    assert len(set(typicality(rows, np.random.default_rng(0)).tolist())) == 1
    assert clusters(rows, 3, np.random.default_rng(0)).shape == (10,)


def test_clusters_are_the_groups_that_there_are() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(centre, 0.1, size=(20, 2)) for centre in (0, 5, 10)]).astype(np.float32)
    found = clusters(rows, 3, np.random.default_rng(1))
    assert [len(set(found[start : start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
    assert len(set(found)) == 3


def test_distance_to_the_nearest() -> None:
    rows = np.array([[0, 0], [3, 4]], np.float32)
    assert distance_to_nearest(rows, rows[:1]).tolist() == [0, 5]
    assert np.isinf(distance_to_nearest(rows, rows[:0])).all()
