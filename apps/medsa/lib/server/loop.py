"""Housekeeping: once a second it looks at what is on disk and starts the training or the scoring that is due.

It also sees to it that the server gives back the memory that it no longer uses.

Nothing is remembered that a restart would lose: the queue is computed from the labels and the records of
the finished runs, and how often it was started from `attempts.json`. One daemon thread, started only in the
server.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks

from lib.memory import GrowthLimiter
from lib.server.attempts import Attempts
from lib.server.child_trainings import running_training, start_training
from lib.server.night import Night
from lib.server.parts import Parts
from lib.server.queue_view import QueueView
from lib.training.request import RunRequest, Trigger

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
MIN_LABELLED = 2  # one to train on, one to compare versions on
Action = Literal["train", "score"]


@dataclass(frozen=True)
class Situation:
    """All that decides what to start.

    `labelled` counts labels, `pending` those that no finished training has seen; `unscored` are case ids,
    `tried` those of the last scoring that was started, so that one that makes no headway is not started for ever.
    `idle_minutes` are those since the newest pending label was saved, `idle_after` how many start a run (0: none do).
    """

    training: bool
    scoring: bool
    auto_train: bool
    train_after: int
    labelled: int
    pending: int
    may_start: bool
    unscored: tuple[str, ...]
    tried: tuple[str, ...]
    idle_minutes: float = 0.0
    idle_after: float = 0.0


def training_is_due(situation: Situation) -> bool:
    """Whether the queue is long enough, or has waited, and has a start left, and a run would find enough cases."""
    waits = situation.pending >= situation.train_after or _is_idle(situation)
    return waits and situation.labelled >= MIN_LABELLED and situation.auto_train and situation.may_start


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


def is_active(method: str) -> bool:
    """Whether a child process of this kind runs or is about to."""
    return any(task["status"] in ("SUBMITTED", "RUNNING") for task in list(tasks(method)))


class Housekeeping:
    """Starts what is due for one app."""

    def __init__(self, parts: Parts, queue: QueueView) -> None:
        self._parts, self._queue = parts, queue
        self.attempts = Attempts(parts.state / "attempts.json")
        self._tried: tuple[str, ...] = ()
        self._memory = GrowthLimiter()
        self.night: Night | None = None

    def start(self) -> None:
        """Begins to look once a second, until the process ends."""
        threading.Thread(target=self._run, name="medsa-housekeeping", daemon=True).start()

    def situation(self) -> Situation:
        """The state of things now."""
        training = self._parts.settings.training
        pending = self._queue.pending()
        return Situation(
            training=is_active("train"),
            scoring=is_active("scoring"),
            auto_train=training.auto_train,
            train_after=training.train_after,
            labelled=self._queue.labelled(),
            pending=len(pending),
            may_start=self.attempts.may_start(pending),
            unscored=self._queue.unscored(),
            tried=self._tried,
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
        situation = self.situation()
        action = next_action(situation)
        if action == "train":
            self._start_training(situation)
        elif action == "score":
            self._tried = situation.unscored
            AsyncTask.run("scoring", request={"method": "medsa"})
        return action

    def records(self) -> Sequence[dict[str, Any]]:
        """The records of all runs, oldest first; not to be changed."""
        return self._queue.records()

    def note_stop(self) -> None:
        """Somebody stopped the training: it is not started again for the same labels, nor this night's again."""
        self.attempts.note_stop(self._queue.pending())
        task = running_training()
        if self.night is not None and task is not None and task["request"].get("trigger") == "nightly":
            self.night.note_stop()

    def _start_training(self, situation: Situation) -> None:
        self.make_room()
        self.attempts.note_start(self._queue.pending())
        trigger: Trigger = "labels" if situation.pending >= situation.train_after else "idle"
        log.info("training starts: %d new labels (%s)", situation.pending, trigger)
        start_training(RunRequest("incremental", trigger))

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


def status(parts: Parts, housekeeping: Housekeeping) -> dict[str, Any]:
    """The answer of GET /medsa/status but for the base."""
    situation = housekeeping.situation()
    records = housekeeping.records()
    return {
        "task": parts.settings.task.name,
        "pending_labels": situation.pending,
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
