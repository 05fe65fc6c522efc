"""Paired intervals."""

import numpy as np
import pytest

from lib.errors import InputError
from lib.evaluation.bootstrap import Interval, paired_bootstrap


@pytest.fixture
def before() -> list[float]:
    return np.random.default_rng(0).uniform(0.2, 0.9, 30).tolist()


def test_a_steady_gain_is_sure_however_the_cases_differ(before: list[float]) -> None:
    after = [value + 0.05 + 0.01 * (n % 3) for n, value in enumerate(before)]
    interval = paired_bootstrap(before, after, seed=1)
    assert interval.mean == pytest.approx(0.06)
    assert 0.05 < interval.low < 0.06 < interval.high < 0.07


def test_noise_is_not_sure(before: list[float]) -> None:
    noise = np.random.default_rng(1).normal(0.0, 0.1, 30)
    interval = paired_bootstrap(before, (np.array(before) + noise).tolist(), seed=1)
    assert interval.low < 0 < interval.high


def test_equal_differences_give_a_point() -> None:
    interval = paired_bootstrap([0.25, 0.5, 0.75], [0.5, 0.75, 1.0], seed=0)
    assert interval == Interval(0.25, 0.25, 0.25)


def test_the_seed_decides_and_the_level_widens(before: list[float]) -> None:
    after = [value**2 for value in before]
    wide = paired_bootstrap(before, after, seed=3)
    assert wide == paired_bootstrap(before, after, seed=3)
    narrow = paired_bootstrap(before, after, seed=3, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([], []), ([1.0, 2.0], [1.0, float("nan")])]
)
def test_what_cannot_be_compared(a: list[float], b: list[float]) -> None:
    with pytest.raises(InputError):
        paired_bootstrap(a, b, seed=0)
