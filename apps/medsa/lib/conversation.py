"""What was answered before in the same conversation, so that a correction changes what it must and keeps the rest.

A conversation is one client's clicks on one object of one volume. Viewers send all clicks every time, without their
order; an answer is remembered with the prompts it was given to, and a request that adds to those goes on from it.
Nothing here outlives the process: without memory all prompts are answered at once, as in a first request.

Concurrency. Shared between requests: the table of answers, guarded by one lock held for look-ups only. Answers are
never changed.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from lib.prompts.promptset import PromptSet
from lib.propagation import PlaneMask

MAX_BYTES = 256 << 20
KEPT_ANSWERS = 12  # of one conversation: as many steps can be undone without a change of what was


@dataclass(frozen=True)
class Topic:
    """What a conversation is about.

    `volume` is its content key, `model` the predictor's key, `axis` the slices' axis, `label` the name of the label
    meant; `scope` tells apart who asks for whole objects and who for slices.
    """

    client: str
    volume: str
    model: str
    axis: int
    label: str | None
    scope: str


@dataclass(frozen=True, eq=False)
class Earlier:
    """An answer: the prompts it was given to, and the slices' masks."""

    prompts: PromptSet
    planes: Mapping[int, PlaneMask]

    @property
    def nbytes(self) -> int:
        """Of its masks."""
        return sum(plane.logits.nbytes for plane in self.planes.values())


class Conversations:
    """The last answers, newest last; beyond `max_bytes` the conversation that rested longest goes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._answers: OrderedDict[Topic, list[Earlier]] = OrderedDict()
        self._used = 0

    def recall(self, topic: Topic, prompts: PromptSet) -> Earlier | None:
        """The answer to most of `prompts`, and to nothing else; to all of them if there was one."""
        with self._lock:
            fitting = [one for one in self._answers.get(topic, ()) if adds_to(prompts, one.prompts)]
        return max(fitting, key=lambda one: _point_count(one.prompts), default=None)

    def remember(self, topic: Topic, answer: Earlier) -> None:
        """Keeps `answer`; one to the same prompts is replaced."""
        if answer.nbytes > self._max_bytes:
            return
        with self._lock:
            kept = [one for one in self._answers.pop(topic, []) if one.prompts != answer.prompts]
            self._answers[topic] = [*kept[-(KEPT_ANSWERS - 1) :], answer]
            self._used = sum(one.nbytes for answers in self._answers.values() for one in answers)
            while self._used > self._max_bytes:
                _, gone = self._answers.popitem(last=False)
                self._used -= sum(one.nbytes for one in gone)


def adds_to(prompts: PromptSet, earlier: PromptSet) -> bool:
    """Whether `prompts` are the earlier ones, perhaps with more points. Anything else taken back or changed is no."""
    if (prompts.boxes, prompts.label, prompts.mask) != (earlier.boxes, earlier.label, earlier.mask):
        return False
    return set(earlier.positive_ijk) <= set(prompts.positive_ijk) and set(earlier.negative_ijk) <= set(
        prompts.negative_ijk
    )


def _point_count(prompts: PromptSet) -> int:
    return len(set(prompts.positive_ijk)) + len(set(prompts.negative_ijk))
