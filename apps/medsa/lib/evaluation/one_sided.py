"""How bad a mean difference may be in truth: the lower end of a one-sided bootstrap interval."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from lib.errors import InputError

RESAMPLES = 4999


def lower_bound(differences: Sequence[float], confidence: float, seed: int) -> float:
    """What the mean of paired `differences` is above with this confidence; that of one difference is itself.

    Percentile bootstrap (Efron and Tibshirani 1993), its percentile corrected for few values as Hesterberg proposes
    (*What Teachers Should Know About the Bootstrap*, The American Statistician 2015, "expanded percentiles"): means of
    resamples vary less than means of samples do. Raises InputError for no differences, or such that are not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError("differences", list(differences), "one finite number or more")
    if np.ptp(values) == 0:
        return float(values.mean())
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=_expanded(confidence, values.size),
        alternative="greater",
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low)


def _expanded(confidence: float, count: int) -> float:
    quantile = stats.t.ppf(confidence, count - 1) * math.sqrt(count / (count - 1))
    # Below 1, which it would be rounded to for two values: then the least of the resamples is meant.
    return min(float(stats.norm.cdf(quantile)), 1.0 - 1e-9)
