"""The order in which unlabelled cases are offered: pure functions of a pool and a generator, best first.

The first `HEAD` of a ranking follow the strategy, one after the other; what comes behind is there so that nobody goes
away empty, in the order of one simple measure. What others hold comes first in what looks at likeness: the next cases
are unlike those too, and not only unlike what is labelled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lib.activelearning.geometry import Coverage, Rows, distance_to_nearest, typicality
from lib.activelearning.pool import Pool

HEAD = 64
# Below so many labelled cases uncertainty is mostly noise: what is typical and different is learned from first.
COLD_LABELS = 4
# ClaSP PE: noise on the logarithm of the uncertainty, which falls with the number of labels.
NOISE, NOISE_LABELS = 0.5, 10.0
# The very first case is among the most typical quarter, whatever else it would stand for.
FIRST_TYPICAL = 0.75
STRATIFIED = 0.5  # of the places go to one label after the other, the rest to the sum of all
COVERED = 1.0  # the weight of standing for much that no labelled one stands for
LEAST, MOST = 0.25, 4.0  # the gains that count, in medians

Places = NDArray[np.intp]
Numbers = NDArray[np.floating]


@dataclass(frozen=True)
class Ranked:
    """A case, why it stands where it does, and for which label's sake (None: for all).

    `why` is "cold", "uncertain", "diverse", "entropy", "random", "foreground", "first", "later" or "unscored";
    `parts` are the numbers behind it.
    """

    case: str
    why: str
    label: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


Strategy = Callable[[Pool, np.random.Generator], list[Ranked]]


def medsa(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
    """Cases that stand for many as long as there is little to go by, then uncertain ones that do.

    Cold start by typicality and diversity, as TypiClust (Hacohen et al., arXiv 2202.02794) has it, in one measure: what
    a case adds to the coverage of all images. Then a power-scheduled, class-balanced uncertainty after ClaSP PE, with
    that same gain as a factor; it counts what was chosen before in this ranking as labelled.
    """
    scored = pool.trained & pool.described & ~np.isnan(pool.uncertainty).any(axis=1)
    if pool.labelled.sum() < COLD_LABELS or not scored[pool.unlabelled].any():
        return _cold(pool, rng)
    return _uncertain(pool, scored, rng)


def foreground_random(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
    """Any case in which a label is expected that was drawn before; all others behind them."""
    order = rng.permutation(pool.unlabelled)
    labels = rng.integers(len(pool.labels), size=len(order))
    holds = np.array([pool.expected[place, label] for place, label in zip(order, labels, strict=True)], bool)
    first = [
        Ranked(pool.cases[place], "foreground", pool.labels[label])
        for place, label, held in zip(order, labels, holds, strict=True)
        if held
    ]
    return first + [Ranked(pool.cases[place], "random") for place in order[~holds]]


def random(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
    """Any order equally likely."""
    return [Ranked(pool.cases[place], "random") for place in rng.permutation(pool.unlabelled)]


def first(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
    """Alphabetical."""
    return [Ranked(case, "first") for case in sorted(pool.cases[place] for place in pool.unlabelled)]


def entropy(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
    """The highest mean entropy of the predicted objects and their borders first, over all labels."""
    mean = ((pool.entropy + pool.border) / 2.0).mean(axis=1)
    return [
        Ranked(
            pool.cases[place],
            "unscored" if np.isnan(mean[place]) else "entropy",
            None,
            _part(entropy=mean[place]),
        )
        for place in _descending(mean, pool.unlabelled)
    ]


def diversity(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
    """One after the other the case farthest from all that are labelled or chosen (k-centre, Sener et al., 1708.00489).

    Where nothing is labelled yet it begins with the most typical one.
    """
    candidates = pool.unlabelled[pool.described[pool.unlabelled]]
    rest = pool.unlabelled[~pool.described[pool.unlabelled]]
    if len(candidates) == 0:
        return [Ranked(pool.cases[place], "unscored") for place in rest]
    spread = _Spread.over(pool, candidates)
    ranked: list[Ranked] = []
    for among in _head(pool, candidates):
        if not np.isfinite(spread.distance).all():
            start = spread.free_argmax(typicality(pool.embedding[candidates], rng), among)
            ranked.append(Ranked(pool.cases[candidates[start]], "diverse"))
            spread.choose(start)
            continue
        place = spread.free_argmax(spread.distance, among)
        ranked.append(
            Ranked(pool.cases[candidates[place]], "diverse", None, _part(distance=spread.relative[place]))
        )
        spread.choose(place)
    left = candidates[~spread.chosen][np.argsort(-spread.distance[~spread.chosen], kind="stable")]
    return ranked + _later(pool, left) + [Ranked(pool.cases[place], "unscored") for place in rest]


STRATEGIES: Mapping[str, Strategy] = {
    "medsa": medsa,
    "foreground_random": foreground_random,
    "random": random,
    "first": first,
    "entropy": entropy,
    "diversity": diversity,
}


@dataclass
class _Spread:
    """How far candidates are from all that is labelled or chosen, as that grows."""

    rows: Rows
    distance: Numbers  # infinite as long as there is nothing
    usual: float  # the median distance at the beginning
    chosen: NDArray[np.bool_]

    @classmethod
    def over(cls, pool: Pool, candidates: Places) -> "_Spread":
        rows = pool.embedding[candidates]
        distance = distance_to_nearest(rows, pool.embedding[pool.labelled & pool.described])
        # Where nothing labelled is known, what is usual among the candidates themselves.
        measured = (
            distance if np.isfinite(distance).all() else distance_to_nearest(rows, rows.mean(axis=0)[None])
        )
        usual = max(float(np.median(measured)), 1e-6)
        return cls(rows, distance, usual, np.zeros(len(candidates), bool))

    @property
    def relative(self) -> Numbers:
        """In medians of the beginning."""
        return self.distance / self.usual

    def choose(self, place: int) -> None:
        self.chosen[place] = True
        self.distance = np.minimum(self.distance, distance_to_nearest(self.rows, self.rows[[place]]))

    def free_argmax(self, values: Numbers, among: NDArray[np.bool_]) -> int:
        return int(np.where(self.chosen | ~among, -np.inf, values).argmax())


def _cold(pool: Pool, rng: np.random.Generator) -> list[Ranked]:
    """One after the other the image that stands for most of those that no labelled one stands for."""
    candidates, rest = _known(pool, pool.described)
    if len(candidates) == 0:
        return rest
    typical = _percentiles(typicality(pool.embedding[pool.described], rng))
    percentile = typical[np.searchsorted(np.flatnonzero(pool.described), candidates)]
    coverage = _coverage(pool, candidates, rng)
    ranked: list[Ranked] = []
    for among in _head(pool, candidates):
        if not ranked and not pool.labelled.any():
            typical_ones = among & (percentile >= FIRST_TYPICAL)
            among = typical_ones if typical_ones.any() else among
        place = coverage.choose(lambda gains: gains, among)
        parts = _part(coverage=coverage.gains[place], typicality=percentile[place])
        ranked.append(Ranked(pool.cases[candidates[place]], "cold", None, parts))
    left = np.flatnonzero(~coverage.chosen)
    return ranked + _later(pool, candidates[left[np.argsort(-coverage.gains[left], kind="stable")]]) + rest


def _uncertain(pool: Pool, scored: NDArray[np.bool_], rng: np.random.Generator) -> list[Ranked]:
    candidates, rest = _known(pool, scored)
    uncertainty = np.where(pool.expected, pool.uncertainty, 0.0)[candidates]
    noise = NOISE * NOISE_LABELS / (NOISE_LABELS + float(pool.labelled.sum()))
    # Both in logarithms, so that they multiply; the noise makes it a draw, as a power of the uncertainty would.
    drawn = np.log(uncertainty + 1e-3) + noise * rng.gumbel(size=uncertainty.shape)
    overall = np.log(uncertainty.mean(axis=1) + 1e-3) + noise * rng.gumbel(size=len(candidates))
    coverage = _coverage(pool, candidates, rng)
    usual = max(float(np.median(coverage.gains)), 1e-6)
    distance = _relative_distance(pool, candidates)
    turns = _label_turns(uncertainty)
    ranked: list[Ranked] = []
    # Where the turns have come to: a lone annotator is given the first place of one ranking after the other.
    done = int(pool.labelled.sum())
    for turn, among in enumerate(_head(pool, candidates), done):
        label = (
            turns[int(turn * STRATIFIED) % len(turns)] if _is_stratified(turn) and len(turns) > 1 else None
        )
        value = overall if label is None else drawn[:, label]
        place = coverage.choose(partial(_worth, value, usual), among)
        ranked.append(_told(pool, candidates[place], label, coverage.gains[place], distance[place]))
    left = np.flatnonzero(~coverage.chosen)
    ordered = left[np.argsort(-overall[left], kind="stable")]
    return ranked + _later(pool, candidates[ordered]) + rest


def _head(pool: Pool, candidates: Places) -> Iterator[NDArray[np.bool_]]:
    """Among which of the candidates each of the first places is chosen: what somebody has, then all others."""
    held = pool.held[candidates]
    count = int(held.sum())
    for place in range(min(count + HEAD, len(candidates))):
        yield held if place < count else ~held


def _worth(uncertainty: Numbers, usual: float, gains: Numbers) -> Numbers:
    """Of each candidate, from the logarithm of its uncertainty and its gain."""
    worth: Numbers = uncertainty + COVERED * np.log(np.clip(gains / usual, LEAST, MOST))
    return worth


def _known(pool: Pool, known: NDArray[np.bool_]) -> tuple[Places, list[Ranked]]:
    """The unlabelled cases of which enough is known, and the others as the end of a ranking."""
    free = pool.unlabelled
    return free[known[free]], [Ranked(pool.cases[place], "unscored") for place in free[~known[free]]]


def _coverage(pool: Pool, candidates: Places, rng: np.random.Generator) -> Coverage:
    described = np.flatnonzero(pool.described)
    places = np.searchsorted(described, candidates)
    return Coverage(pool.embedding[described], places, np.flatnonzero(pool.labelled[described]), rng)


def _relative_distance(pool: Pool, candidates: Places) -> Numbers:
    """To the nearest labelled image, in medians of that; 1 where none is known."""
    found = distance_to_nearest(pool.embedding[candidates], pool.embedding[pool.labelled & pool.described])
    if not np.isfinite(found).all():
        return np.ones(len(found))
    return found / max(float(np.median(found)), 1e-6)


def _is_stratified(turn: int) -> bool:
    return int((turn + 1) * STRATIFIED) > int(turn * STRATIFIED)


def _label_turns(uncertainty: Numbers) -> list[int]:
    """The labels, the one that the model is least sure of first; each gets the same number of places."""
    return [int(label) for label in np.argsort(-uncertainty.mean(axis=0), kind="stable")]


def _later(pool: Pool, places: Places) -> list[Ranked]:
    """What comes behind the head: nobody has asked why yet, and of ten thousand it takes as long as all the rest."""
    return [Ranked(pool.cases[place], "later") for place in places.tolist()]


def _told(pool: Pool, place: int, label: int | None, coverage: float, distance: float) -> Ranked:
    if label is None:
        label = int(np.where(pool.expected[place], pool.uncertainty[place], 0.0).argmax())
    parts = _part(
        uncertainty=pool.uncertainty[place, label],
        entropy=pool.entropy[place, label],
        border=pool.border[place, label],
        disagreement=pool.disagreement[place, label],
        coverage=coverage,
        distance=distance,
    )
    return Ranked(pool.cases[place], "uncertain", pool.labels[label], parts)


def _descending(values: Numbers, places: Places) -> Places:
    """`places` by their values; NaN last, in the pool's own order."""
    found = values[places]
    return places[np.argsort(np.where(np.isnan(found), np.inf, -found), kind="stable")]


def _percentiles(values: Numbers) -> Numbers:
    """The share of all values that are not above each."""
    return np.searchsorted(np.sort(values), values, side="right") / len(values)


def _part(**values: float) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in values.items()}


def names(ranked: Sequence[Ranked]) -> list[str]:
    """The cases alone."""
    return [one.case for one in ranked]
