"""What was answered before in the same conversation, so that a correction changes what it must and keeps the rest.

A conversation is one client's clicks on one object of one volume. Viewers send all clicks every time, without their
order; an answer is remembered with the prompts it was given to, and a request that adds to those goes on from it.
Nothing here outlives the process: without memory all prompts are answered at once, as in a first request.

Concurrency. Shared between requests: the table of answers, guarded by one lock held for look-ups only. Answers are
never changed.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lib.prompts.promptset import PromptSet
from lib.propagation import PlaneMask

MAX_BYTES = 128 << 20
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


class Conversations:
    """The last answers, newest last; beyond `max_bytes` the conversation that rested longest goes.

    Of a conversation that is too large on its own the oldest answers go.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._answers: OrderedDict[Topic, list[Earlier]] = OrderedDict()
        self._used = 0

    def recall(self, topic: Topic, prompts: PromptSet) -> Earlier | None:
        """The answer to most of `prompts`, and to nothing else; to all of them if there was one.

        Of several the newest: it is the one that the annotator saw.
        """
        with self._lock:
            newest_first = self._answers.get(topic, [])[::-1]
        fitting = [one for one in newest_first if adds_to(prompts, one.prompts)]
        return max(fitting, key=lambda one: _point_count(one.prompts), default=None)

    def remember(self, topic: Topic, answer: Earlier) -> None:
        """Keeps `answer`; one to the same prompts is replaced."""
        if bytes_of([answer]) > self._max_bytes:
            return
        with self._lock:
            before = self._answers.pop(topic, [])
            answers = [*(one for one in before if one.prompts != answer.prompts), _sharing(answer, before)]
            del answers[:-KEPT_ANSWERS]
            while bytes_of(answers) > self._max_bytes:
                del answers[0]
            self._answers[topic] = answers
            self._used += bytes_of(answers) - bytes_of(before)
            while self._used > self._max_bytes:
                _, gone = self._answers.popitem(last=False)
                self._used -= bytes_of(gone)


def bytes_of(answers: Sequence[Earlier]) -> int:
    """What the answers of one conversation hold; what several of them share counts once."""
    planes = {id(plane): plane.nbytes for one in answers for plane in one.planes.values()}
    sent = [one.prompts.mask for one in answers if one.prompts.mask is not None]
    return sum(planes.values()) + sum({id(mask): mask.inside.nbytes for mask in sent}.values())


def adds_to(prompts: PromptSet, earlier: PromptSet) -> bool:
    """Whether `prompts` are the earlier ones, perhaps with more points. Anything else taken back or changed is no."""
    if (prompts.boxes, prompts.label, prompts.mask) != (earlier.boxes, earlier.label, earlier.mask):
        return False
    return set(earlier.positive_ijk) <= set(prompts.positive_ijk) and set(earlier.negative_ijk) <= set(
        prompts.negative_ijk
    )


def _sharing(answer: Earlier, others: Sequence[Earlier]) -> Earlier:
    """`answer`, with the mask that was sent kept once: viewers send it along with each click."""
    for one in others:
        if one.prompts.mask is not None and one.prompts.mask == answer.prompts.mask:
            return Earlier(replace(answer.prompts, mask=one.prompts.mask), answer.planes)
    return answer


def _point_count(prompts: PromptSet) -> int:
    return len(set(prompts.positive_ijk)) + len(set(prompts.negative_ijk))
