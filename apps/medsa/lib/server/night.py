"""The night's full retraining: a job of MONAI Label's own scheduler, which looks once a minute whether it is due.

All that has to outlive the server is on disk: the records of the runs, and `nightly.json`. Used by the scheduler's
thread and, for a stop and for the status, by request threads; what they share is the file, which is written whole.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import schedule

from lib.server.child_processes import start_training
from lib.server.queue_view import QueueView
from lib.settings import NightlySettings
from lib.training.nightly import NightFile, Nights, is_due, is_news, is_worthwhile, minutes_of
from lib.training.request import RunRequest

log = logging.getLogger(__name__)


class Night:
    """Starts the night's run when it is due.

    `is_training` says whether another training runs, `make_room` is called before one starts; nobody else starts one
    while `starting` is held.
    """

    def __init__(
        self,
        settings: NightlySettings,
        file: NightFile,
        queue: QueueView,
        make_room: Callable[[], None],
        is_training: Callable[[], bool],
        starting: AbstractContextManager[Any],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._file, self._queue = settings, file, queue
        self._make_room, self._now = make_room, now
        self._is_training, self._starting = is_training, starting
        self.nights = Nights.of(settings.at, settings.time_zone, settings.max_hours)

    def schedule(self) -> None:
        """Has MONAI Label's scheduler look, from now on. It has no memory of jobs that it missed, and needs none."""
        schedule.every(1).minutes.do(self._look_safely)

    def look(self) -> bool:
        """Starts the run if it is due; whether it did."""
        with self._starting:
            return self._look()

    def _look(self) -> bool:
        now = self._now()
        if self._is_training() or not is_due(now, self.nights, self._file.read(), self._queue.records()):
            return False
        begun, labels = self.nights.begun(now), self._queue.digests()
        usual = minutes_of(timedelta(hours=self.nights.max_hours), len(labels))
        reason = _nothing_to_do(labels, self._queue.obstacle(), self._queue.records(), usual)
        if reason is not None:
            log.info("no retraining tonight: %s", reason)
            self._file.note_over(begun)
            return False
        minutes = minutes_of(self.nights.left(now), len(labels))
        if not is_worthwhile(minutes, usual):
            return False  # a server that was started near the window's end; the next night has all of its own
        self._make_room()
        self._file.note_start(begun)
        log.info("the night's retraining starts: %d labels, %.0f minutes", len(labels), minutes)
        request = RunRequest("full", "nightly", self._settings.start, minutes, now + self.nights.left(now))
        return start_training(request) is not None

    def note_stop(self) -> None:
        """Somebody stopped the night's training: it is not started again before the next night."""
        self._file.note_over(self.nights.begun(self._now()))

    def note_interruption(self) -> None:
        """A person's training takes the place of the night's, which goes on after it: that costs no start."""
        self._file.take_back_start(self.nights.begun(self._now()))

    def status(self) -> dict[str, Any]:
        """For GET /medsa/status."""
        now = self._now()
        return {
            "next": self.nights.coming(now).isoformat(timespec="minutes"),
            "window_open": bool(self.nights.left(now)),
            "max_hours": self._settings.max_hours,
            "from": self._settings.start,
        }

    def _look_safely(self) -> None:
        try:
            self.look()
        except Exception:
            # The scheduler's thread is MONAI Label's, and would end.
            log.exception("looking after the night's retraining failed; it is tried again")


def _nothing_to_do(
    labels: dict[str, str], obstacle: str | None, records: list[dict[str, Any]], usual: float
) -> str | None:
    if obstacle is not None:
        return obstacle
    if not is_news(labels, records, usual):
        return "the labels are those of the last full training"
    return None
