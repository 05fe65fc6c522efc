"""Distances between embeddings (n, d) of images: how typical one is of all, how unlike some, what it stands for."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS, LEAST_NEIGHBOURS = 20, 3  # after TypiClust (Hacohen et al., arXiv 2202.02794)
AT_ONCE = 512  # gains that are computed anew: each alone would cost more in calls than in numbers
MOST_REFERENCES = 1000  # images that stand for all, where there are more

Rows = NDArray[np.float32]
Distances = NDArray[np.float32]


def typicality(rows: Rows, rng: np.random.Generator) -> Distances:
    """(n,): the inverse of the mean distance to the nearest 20 others, or to all where there are fewer.

    With more than a thousand images, to the nearest of a thousand that are drawn: the order hardly depends on which.
    """
    if len(rows) < 2:
        return np.ones(len(rows), np.float32)
    references = _references(len(rows), rng)
    found = distances(rows, rows[references])
    found[references, np.arange(len(references))] = np.inf  # an image is no neighbour of its own
    near = min(NEIGHBOURS, len(references) - 1)
    nearest = np.partition(found, near - 1, axis=1)[:, :near]
    return 1.0 / np.maximum(nearest.mean(axis=1), 1e-6)


def distance_to_nearest(rows: Rows, among: Rows) -> Distances:
    """(n,): to the nearest of `among` (m, d); infinite where there is none."""
    nearest = np.full(len(rows), np.inf, np.float32)
    for start in range(0, len(among), MOST_REFERENCES):  # so that memory does not grow with both
        found = distances(rows, among[start : start + MOST_REFERENCES]).min(axis=1)
        nearest = np.minimum(nearest, found)
    return nearest


class Coverage:
    """How well what is labelled stands for all images, and by how much each candidate would add to that.

    An image stands for another one as a Gaussian of their distance says, 0 to 1, as wide as images usually are from
    their nearest tenth; each is stood for as well as by its best. What a candidate adds for the others, the gain of
    the facility location function, is large where many images lie that nothing labelled is like: neither for an
    outlier, which is like no other, nor for the twin of a labelled one. Chosen greedily it comes close to the best
    that any choice could reach (Nemhauser, Wolsey and Fisher 1978); gains only fall, so that most need not be computed
    anew. With more than a thousand images a thousand that are drawn stand for all.
    """

    def __init__(
        self, rows: Rows, candidates: NDArray[np.intp], labelled: NDArray[np.intp], rng: np.random.Generator
    ) -> None:
        """`candidates` (c,) and `labelled` are places in `rows` (n, d)."""
        self._references = _references(len(rows), rng)
        self._candidates = candidates
        others = rows[self._references]
        width = usual_distance(others)
        self._similar = _similarity(rows[candidates], others, width)
        # Nobody stands for itself: an outlier would be worth as much as a group.
        self._similar[candidates[:, None] == self._references] = 0.0
        self._reached = np.zeros(len(others), np.float32)
        for start in range(0, len(labelled), MOST_REFERENCES):
            similar = _similarity(rows[labelled[start : start + MOST_REFERENCES]], others, width)
            self._reached = np.maximum(self._reached, similar.max(axis=0))
        self.chosen = np.zeros(len(candidates), bool)
        self._gains = np.zeros(len(candidates))
        self._computed = np.zeros(len(candidates), np.intp)  # after how many choices
        self._compute(np.arange(len(candidates)), 0)

    @property
    def gains(self) -> NDArray[np.float64]:
        """(c,): the share of all images that each candidate adds; an upper bound of it for some."""
        return self._gains

    def choose(
        self,
        value: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        among: NDArray[np.bool_] | None = None,
    ) -> int:
        """The candidate of the highest value that is not chosen yet, which is chosen now.

        With `among` (c,) of those alone. `value` gives one for each candidate from its gain, and a smaller gain is
        never worth more. Raises ValueError where all are chosen.
        """
        out = self.chosen if among is None else self.chosen | ~among
        if out.all():
            raise ValueError("all candidates are chosen")
        rounds = int(self.chosen.sum())
        while True:
            worth = np.where(out, -np.inf, value(self._gains))
            place = int(worth.argmax())
            if self._computed[place] == rounds:
                break
            stale = np.flatnonzero(~out & (self._computed < rounds))
            best = np.argsort(-worth[stale], kind="stable")[:AT_ONCE]
            self._compute(stale[best], rounds)
        self.chosen[place] = True
        self._reached = np.maximum(self._reached, self._similar[place])
        self._reached[self._references == self._candidates[place]] = 1.0
        return place

    def _compute(self, places: NDArray[np.intp], rounds: int) -> None:
        added = np.maximum(self._similar[places] - self._reached, 0.0).sum(axis=1)
        self._gains[places] = added / max(1, len(self._reached))
        self._computed[places] = rounds


def usual_distance(rows: Rows) -> float:
    """The median of the mean distances to the nearest tenth, 3 to 20 images; 1 where there is no distance."""
    if len(rows) < 2:
        return 1.0
    found = distances(rows, rows)
    np.fill_diagonal(found, np.inf)
    near = min(max(LEAST_NEIGHBOURS, len(rows) // 10), NEIGHBOURS, len(rows) - 1)
    nearest = np.partition(found, near - 1, axis=1)[:, :near]
    return float(np.median(nearest.mean(axis=1))) or 1.0


def distances(rows: Rows, others: Rows) -> Distances:
    """(n, m), Euclidean; by a product of matrices, which is many times as fast as one pair after the other."""
    squares = (rows * rows).sum(axis=1)[:, None] + (others * others).sum(axis=1) - 2.0 * (rows @ others.T)
    return np.sqrt(np.maximum(squares, 0.0))


def _similarity(rows: Rows, others: Rows, width: float) -> Rows:
    """(n, m), 0 to 1."""
    found: Rows = np.exp(-0.5 * (distances(rows, others) / width) ** 2)
    return found


def _references(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Places of the images that stand for all."""
    if count <= MOST_REFERENCES:
        return np.arange(count)
    return np.sort(rng.choice(count, MOST_REFERENCES, replace=False))
