"""How much a prediction leaves open."""

import numpy as np
import pytest

from lib.scoring.measures import Entropy, disagreement, entropy_of


def square(inside: float, outside: float = 0.0) -> np.ndarray:
    probability = np.full((3, 20, 20), outside)
    probability[:, 6:14, 6:14] = inside
    return probability


def test_certain_is_nought_and_a_coin_toss_one() -> None:
    assert entropy_of(square(1.0)).inside == pytest.approx(0, abs=1e-6)
    assert entropy_of(np.full((2, 8, 8), 0.5)).inside == pytest.approx(1)


def test_less_certain_scores_higher() -> None:
    scores = [entropy_of(square(inside)).inside for inside in (0.99, 0.9, 0.7, 0.55)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


def test_an_uncertain_border_is_told_from_an_uncertain_inside() -> None:
    probability = square(1.0)
    probability[:, 4:6, 4:16] = 0.4
    assert entropy_of(probability).inside == pytest.approx(0, abs=1e-6)
    assert entropy_of(probability).border > 0.05
    doubtful_inside = square(1.0)
    doubtful_inside[:, 9:11, 9:11] = 0.6
    assert entropy_of(doubtful_inside).inside > 0.05
    assert entropy_of(doubtful_inside).border == pytest.approx(0, abs=1e-6)


def test_what_is_far_from_the_object_does_not_count() -> None:
    padded = np.zeros((3, 200, 200))
    padded[:, :20, :20] = square(0.8)
    assert entropy_of(padded).inside == pytest.approx(entropy_of(square(0.8)).inside)
    assert entropy_of(padded).border == pytest.approx(entropy_of(square(0.8)).border)


def test_where_nothing_is_found_the_likeliest_place_counts() -> None:
    assert entropy_of(square(0.3)).inside > entropy_of(square(0.05)).inside > 0


def test_the_border_does_not_reach_into_other_slices() -> None:
    probability = np.zeros((3, 20, 20))
    probability[1, 5:10, 5:10] = 1.0
    probability[0] = probability[2] = 0.49
    assert entropy_of(probability).border == pytest.approx(0, abs=1e-6)


def test_an_object_that_fills_the_image_has_no_border_at_its_edge() -> None:
    assert entropy_of(np.full((1, 8, 8), 0.9)).border == 0


def test_no_slices() -> None:
    assert entropy_of(np.zeros((0, 4, 4))) == Entropy(0, 0)


def test_disagreement() -> None:
    one = square(1.0)
    moved = np.roll(one, 4, axis=2)
    assert disagreement(one, one) == 0
    assert disagreement(one, np.roll(one, 10, axis=2)) == 1
    assert 0.4 < disagreement(one, moved) < 0.6
    assert disagreement(np.zeros((1, 4, 4)), np.zeros((1, 4, 4))) == 0
