"""Rankings of a datastore's unlabelled cases, by name of strategy, computed when something has changed.

Nobody waits long for one: of ten thousand cases a ranking takes half a second to a second, and until it is there the
one before counts, less what was labelled since.

Concurrency. Shared between requests: the last ranking of each strategy and which is being computed, and the generator
of draws, guarded by one lock; the last pool, guarded by another one, which is held while a newer pool is made. One
thread computes rankings; what is drawn is drawn by who asks for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from lib.activelearning.pool import Pool, pool_of
from lib.activelearning.ranking import STRATEGIES, Ranked
from lib.activelearning.reasons import reason_of
from lib.scoring.scores import ScoreFolder, ScoreTable, stable_order

log = logging.getLogger(__name__)

DEFAULT = "medsa"  # the strategy of the page, and of what is encoded ahead
FRESH_SECONDS = 15.0
PATIENCE_SECONDS = 0.03  # for a ranking, where there is an older one
# Each request gets a draw of its own, which takes no time.
DRAWN = ("random", "foreground_random")


class Images(Protocol):
    """What is asked of a datastore."""

    def list_images(self) -> Collection[str]: ...
    def get_unlabeled_images(self) -> Collection[str]: ...
    def image_signatures(self) -> Mapping[str, str]: ...


class Candidates(NamedTuple):
    """The `cases` that a strategy looks at, and the `unlabelled` ones, of which it chooses."""

    cases: Collection[str]
    unlabelled: Collection[str]


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

    def less_labelled(self, unlabelled: frozenset[str]) -> "Ranking":
        """The same order of those that are unlabelled now; what it does not know yet comes last."""
        known = {one.case for one in self.ranked}
        left = [one for one in self.ranked if one.case in unlabelled]
        new = [Ranked(case, "unscored") for case in sorted(unlabelled - known, key=stable_order)]
        return replace(self, ranked=[*left, *new])


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


@dataclass(frozen=True, eq=False)
class _Begun:
    """A ranking that is being computed, and of what."""

    cases: frozenset[str]
    unlabelled: frozenset[str]
    future: "Future[Ranking]"


class Chooser:
    """Ranks with the scores of `scores`; `seed` makes every draw repeatable; `held` says what is in somebody's hands.

    Where there is a ranking from before, it is waited for a newer one for `patience` seconds.
    """

    def __init__(
        self,
        scores: ScoreFolder,
        labels: Sequence[str],
        seed: int,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE_SECONDS,
        held: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._scores, self._labels, self._seed, self._clock = scores, tuple(labels), seed, clock
        self._patience, self._held = patience, held
        self._lock, self._pool_lock = threading.Lock(), threading.Lock()
        self._rng = np.random.default_rng(seed)
        self._pool: tuple[ScoreTable, frozenset[str], Pool] | None = None
        self._rankings: dict[str, _Kept] = {}
        self._begun: dict[str, _Begun] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="medsa-ranking")

    def candidates(self, store: Images) -> Candidates:
        """The images of `store` and the unlabelled ones, but for files that scoring could not read."""
        unlabelled, cases = store.get_unlabeled_images(), store.list_images()
        unreadable = self._scores.table().unreadable
        if not unreadable:
            return Candidates(cases, unlabelled)
        images = store.image_signatures()
        bad = {case for case, image in unreadable.items() if images.get(case) == image}
        return Candidates(
            [case for case in cases if case not in bad], [case for case in unlabelled if case not in bad]
        )

    def ranking(self, strategy: str, cases: Collection[str], unlabelled: Collection[str]) -> Ranking:
        """All `unlabelled` of `cases` by `strategy`.

        Unless it is drawn it is the same as before where no case and no label is new; new scores count after
        `FRESH_SECONDS` and the time that a ranking takes.
        """
        everything, free = frozenset(cases), frozenset(unlabelled)
        if strategy in DRAWN:
            return self._draw(strategy, everything, free)
        with self._lock:
            known = self._rankings.get(strategy)
            if known is not None and known.fits(everything, free, self._scores.table(), self._clock()):
                return known.ranking
            future = self._begin(strategy, everything, free)
        try:
            return future.result(None if known is None else self._patience)
        except (TimeoutError, CancelledError):
            # Cancelled for a newer one, which is done only where there is one from before.
            return self._rankings[strategy].ranking.less_labelled(free)

    def prepare(
        self, strategy: str, cases: Collection[str], unlabelled: Collection[str]
    ) -> "Future[Ranking]":
        """Begins to compute what `ranking` would give."""
        with self._lock:
            return self._begin(strategy, frozenset(cases), frozenset(unlabelled))

    def _begin(self, strategy: str, cases: frozenset[str], free: frozenset[str]) -> "Future[Ranking]":
        """The ranking of that which is being computed already, else a new one. The caller holds the lock."""
        begun = self._begun.get(strategy)
        if begun is not None and (begun.cases, begun.unlabelled) == (cases, free):
            return begun.future
        if begun is not None and strategy in self._rankings:
            begun.future.cancel()  # has no effect on one that is being computed: at most one waits behind it
        future = self._thread.submit(self._compute, strategy, cases, free)
        self._begun[strategy] = _Begun(cases, free, future)
        return future

    def _draw(self, strategy: str, cases: frozenset[str], free: frozenset[str]) -> Ranking:
        """By whoever asks, so that it does not wait for another strategy's ranking."""
        with self._lock:
            (rng,) = self._rng.spawn(1)
        pool = self._pool_of(self._scores.table(), cases).with_labelled(cases - free)
        return Ranking(pool, STRATEGIES[strategy](pool, rng))

    def _compute(self, strategy: str, cases: frozenset[str], free: frozenset[str]) -> Ranking:
        try:
            table, now = self._scores.table(), self._clock()
            pool = self._pool_of(table, cases).with_labelled(cases - free, set(self._held()))
            # By how much is labelled: a restart does not change what is offered.
            rng = np.random.default_rng([self._seed, len(cases - free)])
            ranking = Ranking(pool, STRATEGIES[strategy](pool, rng))
            with self._lock:
                self._rankings[strategy] = _Kept(cases, free, table, now, ranking)
            return ranking
        except Exception:
            log.exception("the next cases could not be ranked")  # who asked may not be waiting any more
            raise
        finally:
            with self._lock:
                begun = self._begun.get(strategy)
                if begun is not None and (begun.cases, begun.unlabelled) == (cases, free):
                    del self._begun[strategy]

    def _pool_of(self, table: ScoreTable, cases: frozenset[str]) -> Pool:
        with self._pool_lock:
            if self._pool is None or self._pool[0] is not table or self._pool[1] != cases:
                self._pool = (table, cases, pool_of(cases, self._labels, table))
            return self._pool[2]
