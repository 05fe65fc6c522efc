"""The uncertainty score."""

import numpy as np
import pytest

from lib.scoring.entropy import mean_entropy


def square(inside: float, outside: float = 0.0) -> np.ndarray:
    probability = np.full((3, 20, 20), outside)
    probability[:, 6:14, 6:14] = inside
    return probability


def test_certain_is_nought_and_a_coin_toss_one() -> None:
    assert mean_entropy(square(1.0)) == pytest.approx(0, abs=1e-6)
    assert mean_entropy(np.full((2, 8, 8), 0.5)) == pytest.approx(1)


def test_less_certain_scores_higher() -> None:
    scores = [mean_entropy(square(inside)) for inside in (0.99, 0.9, 0.7, 0.55)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


def test_an_uncertain_border_counts() -> None:
    probability = square(1.0)
    probability[:, 4:6, 4:16] = 0.4
    assert mean_entropy(probability) > mean_entropy(square(1.0)) + 0.05


def test_what_is_far_from_the_object_does_not_count() -> None:
    padded = np.zeros((3, 200, 200))
    padded[:, :20, :20] = square(0.8)
    assert mean_entropy(padded) == pytest.approx(mean_entropy(square(0.8)))


def test_where_nothing_is_found_the_likeliest_place_counts() -> None:
    assert mean_entropy(square(0.3)) > mean_entropy(square(0.05)) > 0


def test_the_border_does_not_reach_into_other_slices() -> None:
    probability = np.zeros((3, 20, 20))
    probability[1, 5:10, 5:10] = 1.0
    probability[0] = probability[2] = 0.49
    assert mean_entropy(probability) == pytest.approx(0, abs=1e-6)


def test_no_slices() -> None:
    assert mean_entropy(np.zeros((0, 4, 4))) == 0
