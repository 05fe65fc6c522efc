"""How sure a difference between two versions is, from the same cases under both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lib.errors import InputError

RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean and the confidence interval around it."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], seed: int, level: float = 0.95
) -> Interval:
    """The mean of `after - before` over cases, with its percentile bootstrap interval.

    The two hold one value per case, in the same order. Raises InputError for fewer than two cases, unequal
    lengths or values that are not finite.
    """
    if len(before) != len(after) or len(before) < 2:
        raise InputError("cases", (len(before), len(after)), "two or more, as many before as after")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise InputError("values", differences.tolist(), "finite numbers")
    result = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",  # BCa has no answer when all differences are equal
        random_state=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return Interval(float(differences.mean()), float(interval.low), float(interval.high))
