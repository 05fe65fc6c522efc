"""Rankings of a datastore's unlabelled cases, by name of strategy, computed when something has changed.

Concurrency. Shared between requests: the last pool and the last ranking of each strategy, guarded by one lock, which is
held while one is computed: who asks meanwhile waits for that instead of computing it again.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.activelearning.pool import Pool, pool_of
from lib.activelearning.ranking import STRATEGIES, Ranked
from lib.activelearning.reasons import reason_of
from lib.scoring.scores import ScoreFolder, ScoreTable

DEFAULT = "medsa"  # the strategy of the page, and of what is encoded ahead
FRESH_SECONDS = 15.0
# Each request gets a draw of its own.
DRAWN = ("random", "foreground_random")


@dataclass(frozen=True, eq=False)
class Ranking:
    """`ranked`, best first, of `pool`."""

    pool: Pool
    ranked: Sequence[Ranked]

    def about(self, case: str) -> dict[str, Any]:
        """What is said with an offer: its rank of how many, why, and the numbers behind it."""
        rank, found = next((rank, one) for rank, one in enumerate(self.ranked, 1) if one.case == case)
        return {
            "rank": rank,
            "of": len(self.ranked),
            "reason": reason_of(found, self.pool),
            "label": found.label,
            "parts": dict(found.parts),
        }


@dataclass(frozen=True, eq=False)
class _Kept:
    """A ranking, and what it was made of and when."""

    cases: frozenset[str]
    unlabelled: frozenset[str]
    table: ScoreTable
    made: float
    ranking: Ranking

    def fits(self, cases: frozenset[str], unlabelled: frozenset[str], table: ScoreTable, now: float) -> bool:
        """Whether nothing is new but scores of the last few seconds: while scoring runs each moment has one."""
        same = (self.cases, self.unlabelled) == (cases, unlabelled)
        return same and (self.table is table or now - self.made < FRESH_SECONDS)


class Chooser:
    """Ranks with the scores of `scores`; `seed` makes every draw repeatable."""

    def __init__(
        self,
        scores: ScoreFolder,
        labels: Sequence[str],
        seed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scores, self._labels, self._seed, self._clock = scores, tuple(labels), seed, clock
        self._lock = threading.Lock()
        self._rng = np.random.default_rng(seed)
        self._pool: tuple[ScoreTable, frozenset[str], Pool] | None = None
        self._rankings: dict[str, _Kept] = {}

    def ranking(self, strategy: str, cases: Collection[str], unlabelled: Collection[str]) -> Ranking:
        """All `unlabelled` of `cases` by `strategy`.

        Unless it is drawn it is the same as before where no case and no label is new; new scores count after
        `FRESH_SECONDS` at the latest.
        """
        everything, free = frozenset(cases), frozenset(unlabelled)
        with self._lock:
            known, now = self._rankings.get(strategy), self._clock()
            if known is not None and known.fits(everything, free, self._scores.table(), now):
                return known.ranking
            table = self._scores.table()
            pool = self._pool_of(table, everything).with_labelled(everything - free)
            # By how much is labelled: a restart does not change what is offered.
            rng = (
                self._rng
                if strategy in DRAWN
                else np.random.default_rng([self._seed, len(everything - free)])
            )
            ranking = Ranking(pool, STRATEGIES[strategy](pool, rng))
            if strategy not in DRAWN:
                self._rankings[strategy] = _Kept(everything, free, table, now, ranking)
            return ranking

    def _pool_of(self, table: ScoreTable, cases: frozenset[str]) -> Pool:
        if self._pool is None or self._pool[0] is not table or self._pool[1] != cases:
            self._pool = (table, cases, pool_of(cases, self._labels, table))
        return self._pool[2]
