"""Distances between embeddings."""

import numpy as np
import pytest

from lib.activelearning.geometry import (
    Coverage,
    distance_to_nearest,
    distances,
    typicality,
    usual_distance,
)


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
    assert len(chosen(rows, count)) == count


def test_images_that_are_all_the_same() -> None:
    rows = np.ones((10, 3), np.float32)
    assert len(set(typicality(rows, np.random.default_rng(0)).tolist())) == 1
    assert sorted(chosen(rows, 10)) == list(range(10))


def chosen(rows: np.ndarray, count: int) -> list[int]:
    coverage = Coverage(rows.astype(np.float32), np.arange(len(rows)), np.zeros(0, np.intp), rng())
    return [coverage.choose(lambda gains: gains) for _ in range(count)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def three_groups() -> np.ndarray:
    """Sixty images, twenty after twenty."""
    return np.concatenate([rng().normal(centre, 1.0, size=(20, 2)) for centre in ((0, 0), (20, 0), (0, 20))])


def test_what_is_chosen_stands_for_every_group_before_a_group_has_two() -> None:
    assert {place // 20 for place in chosen(three_groups(), 3)} == {0, 1, 2}
    labelled = np.array([5], np.intp)
    coverage = Coverage(three_groups().astype(np.float32), np.arange(6, 60), labelled, rng())
    assert {(coverage.choose(lambda gains: gains) + 6) // 20 for _ in range(2)} == {1, 2}


def test_neither_an_outlier_nor_the_twin_of_a_labelled_image_is_chosen_early() -> None:
    rows = np.concatenate([three_groups(), [[300.0, 300.0]]])
    twins = np.concatenate([rows, rows + 0.01])
    first = chosen(twins, 12)
    assert not {60, 121} & set(first)
    assert len({place % 61 for place in first}) == 12


def test_gains_that_are_computed_when_needed_choose_what_all_gains_would() -> None:
    rows = rng().normal(size=(80, 3)).astype(np.float32)
    similar = np.exp(-0.5 * (distances(rows, rows) / usual_distance(rows)) ** 2)
    np.fill_diagonal(similar, 0)
    reached, expected = np.zeros(80), []
    for _ in range(20):
        gains = np.maximum(similar - reached, 0).mean(axis=1)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        reached = np.maximum(reached, similar[expected[-1]])
        reached[expected[-1]] = 1
    assert chosen(rows, 20) == expected


def test_all_can_be_chosen_and_no_more() -> None:
    coverage = Coverage(np.ones((3, 2), np.float32), np.arange(3), np.zeros(0, np.intp), rng())
    assert sorted(coverage.choose(lambda gains: gains) for _ in range(3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="all candidates are chosen"):
        coverage.choose(lambda gains: gains)


def test_distance_to_the_nearest() -> None:
    rows = np.array([[0, 0], [3, 4]], np.float32)
    assert distance_to_nearest(rows, rows[:1]).tolist() == [0, 5]
    assert np.isinf(distance_to_nearest(rows, rows[:0])).all()
