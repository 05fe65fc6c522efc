"""MONAI Label's strategies: which unlabelled case a client is given next."""

import time
from collections.abc import Callable
from typing import Any

from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.chooser import Chooser, Ranking
from lib.activelearning.leases import Leases
from lib.activelearning.ranking import STRATEGIES

ANONYMOUS = "anonymous"
DESCRIPTIONS = {
    "medsa": "The case from which the model learns most: what stands for many first, then what is uncertain too",
    "foreground_random": "Any case in which a label is expected that was drawn before",
    "random": "Any case, all equally likely",
    "first": "The first case by name",
    "entropy": "The highest mean entropy of the automatic prediction",
    "diversity": "The case that is most unlike all that is labelled",
}


class LeasedStrategy(Strategy):
    """Offers the best unlabelled case by the strategy `name` that is not offered to another client."""

    def __init__(
        self, name: str, chooser: Chooser, leases: Leases, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(DESCRIPTIONS[name])
        self._name, self._chooser, self._leases, self._now = name, chooser, leases, now

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """{"id": image id, "strategy", "rank", "of", "reason", ...}, or {} when no case is left for this client."""
        client = str(request.get("client_id") or ANONYMOUS)
        ranking: Ranking | None = None

        def rank() -> list[str]:
            nonlocal ranking
            ranking = self._chooser.ranking(self._name, *self._chooser.candidates(datastore))
            return [one.case for one in ranking.ranked]

        case = self._leases.offer(client, rank, self._now())
        if case is None or ranking is None:
            return {}
        return {"id": case, "strategy": self._name, **ranking.about(case)}


def strategies(chooser: Chooser, leases: Leases) -> dict[str, Strategy]:
    """The app's strategies by name; the first is the default."""
    return {name: LeasedStrategy(name, chooser, leases) for name in STRATEGIES}
