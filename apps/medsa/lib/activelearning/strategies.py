"""MONAI Label's strategies: which unlabelled case a client is given next."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.leases import Leases
from lib.activelearning.ranking import by_name, by_score, shuffled
from lib.scoring.scores import read_scores

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"
Ranking = Callable[[Collection[str]], list[str]]


class LeasedStrategy(Strategy):
    """Offers the best unlabelled case by `rank` that is not offered to another client."""

    def __init__(
        self, description: str, rank: Ranking, leases: Leases, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(description)
        self._rank, self._leases, self._now = rank, leases, now

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """{"id": image id}, or {} when no case is left for this client."""
        client = str(request.get("client_id") or ANONYMOUS)

        def rank() -> list[str]:
            return self._rank(datastore.get_unlabeled_images())

        case = self._leases.offer(client, rank, self._now())
        return {} if case is None else {"id": case}


def strategies(leases: Leases, scores_file: Path, seed: int) -> dict[str, Strategy]:
    """The app's strategies by name; the first is the default."""
    rng, lock = np.random.default_rng(seed), threading.Lock()

    def at_random(candidates: Collection[str]) -> list[str]:
        with lock:  # a Generator is not safe to share between threads
            return shuffled(candidates, rng)

    def most_uncertain(candidates: Collection[str]) -> list[str]:
        return by_score(candidates, read_scores(scores_file).values_by_case())

    return {
        "medsa": LeasedStrategy("The case that the model is least certain about", most_uncertain, leases),
        "random": LeasedStrategy("Any case, all equally likely", at_random, leases),
        "first": LeasedStrategy("The first case by name", by_name, leases),
    }
