"""Housekeeping: once a second it looks at what is on disk and starts the training or the scoring that is due.

It also sees to it that the server gives back the memory that it no longer uses.

Nothing is remembered that a restart would lose: the queue is computed from the labels and the records of
the finished runs, and how often it was started from `attempts.json`. One daemon thread, started only in the
server.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from monailabel.utils.async_tasks.task import AsyncTask

from lib.errors import AlreadyTrainingError, TrainingError
from lib.memory import GrowthLimiter
from lib.server.attempts import Attempts
from lib.server.child_processes import (
    is_active,
    is_automatic,
    running_training,
    start_training,
    stop_training,
)
from lib.server.night import Night
from lib.server.parts import Parts
from lib.server.queue_view import QueueView
from lib.training.request import RunRequest, Trigger
from lib.training.run import is_under_way

log = logging.getLogger(__name__)

ATTEMPTS = "attempts.json"
INTERVAL_SECONDS = 1.0
# What scoring could not do, a PACS being away, is tried again after so long.
TRY_AGAIN_SECONDS = 300.0
Action = Literal["train", "score"]


@dataclass(frozen=True)
class Situation:
    """All that decides what to start.

    `obstacle` says why a training could publish nothing, None where it could; `pending` counts the labels that no
    finished one has seen; `unscored` are case ids, `tried` those of the last scoring that was started, so that one that
    makes no headway is not started for ever. `idle_minutes` are those since the newest pending label was saved,
    `idle_after` how many start a run (0: none do).
    """

    training: bool
    scoring: bool
    auto_train: bool
    train_after: int
    obstacle: str | None
    pending: int
    may_start: bool
    unscored: tuple[str, ...]
    tried: tuple[str, ...]
    idle_minutes: float = 0.0
    idle_after: float = 0.0


def training_is_due(situation: Situation) -> bool:
    """Whether the queue is long enough, or has waited, and has a start left, and a run could publish something."""
    waits = situation.pending >= situation.train_after or _is_idle(situation)
    return waits and situation.obstacle is None and situation.auto_train and situation.may_start


def _is_idle(situation: Situation) -> bool:
    return (
        situation.pending > 0
        and situation.idle_after > 0
        # The newest label is from the future where the clock was set back: it is not waited for.
        and not 0 <= situation.idle_minutes < situation.idle_after
    )


def next_action(situation: Situation) -> Action | None:
    """What to start now, if anything: training first, scoring when nothing else runs."""
    if situation.training:
        return None
    if training_is_due(situation):
        return "train"
    if not situation.scoring and situation.unscored and situation.unscored != situation.tried:
        return "score"
    return None


class Housekeeping:
    """Starts what is due for one app."""

    def __init__(self, parts: Parts, queue: QueueView) -> None:
        self._parts, self._queue = parts, queue
        self.attempts = Attempts(parts.state / ATTEMPTS)
        self._tried: tuple[str, ...] = ()
        self._tried_at = -TRY_AGAIN_SECONDS
        self._memory = GrowthLimiter()
        self.night: Night | None = None
        # Held from the look whether something is due until it is started.
        self.starting = threading.RLock()
        # The queue that the training is for which was started last and has not been seen to end.
        self._tried_queue: dict[str, str] | None = None

    def start(self) -> None:
        """Begins to look once a second, until the process ends."""
        threading.Thread(target=self._run, name="medsa-housekeeping", daemon=True).start()

    def situation(self) -> Situation:
        """The state of things now."""
        training = self._parts.settings.training
        pending = self._queue.pending()
        return Situation(
            training=self.is_training(),
            scoring=is_active("scoring"),
            auto_train=training.auto_train,
            train_after=training.train_after,
            obstacle=self._queue.obstacle(),
            pending=len(pending),
            may_start=self.attempts.may_start(pending),
            unscored=self._queue.unscored(),
            tried=self._tried if time.monotonic() - self._tried_at < TRY_AGAIN_SECONDS else (),
            idle_minutes=self._idle_minutes(pending),
            idle_after=training.train_idle_minutes,
        )

    def _idle_minutes(self, pending: Mapping[str, str]) -> float:
        saved = self._queue.newest(pending)
        return 0.0 if saved is None else (time.time() - saved) / 60.0

    def tick(self) -> Action | None:
        """Looks once and starts what is due; returns what was started."""
        self._memory.look()
        self._parts.serving.current()  # takes up a new version even when nobody clicks
        with self.starting:
            self._note_failure(self.is_training())
            situation = self.situation()
            action = next_action(situation)
            if action == "train":
                self._start_training(situation)
            elif action == "score":
                self._start_scoring()
        return action

    def is_training(self) -> bool:
        """Whether one runs on this state folder, of this server or of another program."""
        return is_active("train") or is_under_way(self._parts.state)

    @contextmanager
    def for_a_person(self) -> Iterator[None]:
        """A person comes first: what the server started by itself is stopped, and nothing is started meanwhile.

        It goes on later. Raises TrainingError where another program trains.
        """
        with self.starting:
            task = running_training()
            if task is not None and is_automatic(task):
                queue, self._tried_queue = self._tried_queue, None
                if stop_training() is not None:
                    self._take_back_start(task, queue)
            if not is_active("train") and is_under_way(self._parts.state):
                raise AlreadyTrainingError("another program trains on this state folder; wait for its end")
            self.make_room()
            yield

    def _take_back_start(self, task: Mapping[str, Any], queue: Mapping[str, str] | None) -> None:
        if self.night is not None and _is_nights(task):
            self.night.note_interruption()
        elif queue is not None:
            self.attempts.take_back_start(queue)

    def records(self) -> Sequence[dict[str, Any]]:
        """The records of all runs, oldest first; not to be changed."""
        return self._queue.records()

    def check_labels(self) -> None:
        """Raises TrainingError where no training on the labels that there are could publish anything."""
        obstacle = self._queue.obstacle()
        if obstacle is not None:
            raise TrainingError(obstacle)

    def note_stop(self) -> None:
        """Somebody stops what runs: it is not started again for the same labels, or in the same night."""
        task = running_training()
        if task is None:
            return
        self._tried_queue = None
        self.attempts.note_stop(self._queue.pending())
        if self.night is not None and _is_nights(task):
            self.night.note_stop()

    def _start_training(self, situation: Situation) -> None:
        self.make_room()
        queue = self._queue.pending()
        trigger: Trigger = "labels" if situation.pending >= situation.train_after else "idle"
        log.info("training starts: %d new labels (%s)", situation.pending, trigger)
        if start_training(RunRequest("incremental", trigger)) is not None:
            self.attempts.note_start(queue)
            self._tried_queue = queue

    def _start_scoring(self) -> None:
        self._tried_at = time.monotonic()
        self._tried = self._queue.unscored()
        self._queue.look_again()  # a folder that cannot be listed now ends it here, until it is tried again
        self._tried = self._queue.unscored()
        if self._tried:
            AsyncTask.run("scoring", request={"method": "medsa"})

    def _note_failure(self, training: bool) -> None:
        """Looks whether what was started has ended, and left its labels as they were."""
        if self._tried_queue is None or training:
            return
        if self._queue.pending() == self._tried_queue:
            self.attempts.note_failure(self._tried_queue)
        self._tried_queue = None

    def make_room(self) -> None:
        """Ends a scoring: its scores are of a version that is about to be replaced, and training needs the cores."""
        if is_active("scoring"):
            AsyncTask.stop("scoring")
            self._tried = ()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.tick()
            except Exception:
                # The loop has to outlive whatever a file or a child process does.
                log.exception("housekeeping failed; it is tried again")
            pause.wait(INTERVAL_SECONDS)


def _is_nights(task: Mapping[str, Any]) -> bool:
    return bool(task["request"].get("trigger") == "nightly")


def status(parts: Parts, housekeeping: Housekeeping) -> dict[str, Any]:
    """The answer of GET /medsa/status but for the base."""
    situation = housekeeping.situation()
    records = housekeeping.records()
    return {
        "task": parts.settings.task.name,
        "pending_labels": situation.pending,
        "obstacle": situation.obstacle,
        "train_after": situation.train_after,
        "auto_train": situation.auto_train,
        "train_idle_minutes": situation.idle_after,
        "nightly": None if housekeeping.night is None else housekeeping.night.status(),
        "training": situation.training,
        "training_due": training_is_due(situation),
        "scoring": situation.scoring,
        "unscored_cases": len(situation.unscored),
        "last_run": _summary(records[-1]) if records else None,
        "versions": parts.releases.versions(),
    }


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    shown = ("decision", "reasons", "time", "champion", "version", "skipped", "steps", "seconds")
    return {key: record[key] for key in shown if key in record}
