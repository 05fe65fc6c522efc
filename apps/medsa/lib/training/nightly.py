"""When the night's retraining is due: pure functions of the time, the settings and what is on disk.

A night is named by the moment at which it begins. That is a moment of the wall clock: where the clock is set
forward over it, the moment that far after the gap; where it is set back over it, the first of the two.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from lib.files import read_json, write_json
from lib.training.pending import FINISHED

# Starts a night: the first, and two more after a crash.
MAX_STARTS = 3
# Of what is left of the window; the rest is for judging.
TRAINING_SHARE = 0.85
# More than this teaches hardly anything, whatever the window allows.
MINUTES_A_LABEL, LEAST_MINUTES, MOST_MINUTES = 3.0, 10.0, 9_999.0
ENOUGH = 0.5  # of the usual minutes; fewer make no full training


@dataclass(frozen=True)
class Nights:
    """From `at` (wall clock of `time_zone`) for at most `max_hours`, every night."""

    at: time
    time_zone: ZoneInfo
    max_hours: float

    @classmethod
    def of(cls, at: str, time_zone: str, max_hours: float) -> "Nights":
        """From the settings' texts, which were checked when they were read."""
        return cls(time.fromisoformat(at), ZoneInfo(time_zone), max_hours)

    def begun(self, now: datetime) -> datetime:
        """When the last night up to `now` (with a time zone) began, in UTC."""
        today = now.astimezone(self.time_zone).date()
        begins = [self._begin_on(today - timedelta(days=days)) for days in (0, 1, 2)]
        return next(begin for begin in begins if begin <= now)

    def coming(self, now: datetime) -> datetime:
        """When the next one begins, in UTC."""
        today = now.astimezone(self.time_zone).date()
        begins = [self._begin_on(today + timedelta(days=days)) for days in (0, 1, 2)]
        return next(begin for begin in begins if begin > now)

    def left(self, now: datetime) -> timedelta:
        """What is left of the window that is open, none where it is closed."""
        end = self.begun(now) + timedelta(hours=self.max_hours)
        return max(end - now, timedelta())

    def _begin_on(self, day: Any) -> datetime:
        return datetime.combine(day, self.at, self.time_zone).astimezone(UTC)


@dataclass(frozen=True)
class NightLog:
    """What was done about the night that began at `begun`: how often it was started, and whether it is to be
    left alone.
    """

    begun: datetime | None = None
    starts: int = 0
    over: bool = False


def is_due(now: datetime, nights: Nights, log: NightLog, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the night's run is to be started: its window is open, it has not ended, and it has a start left."""
    begun = nights.begun(now)
    if not nights.left(now) or _has_ended(begun, records):
        return False
    if log.begun != begun:
        return True
    return not log.over and log.starts < MAX_STARTS


def minutes_of(left: timedelta, labels: int) -> float:
    """How long to train in what is `left` of the window."""
    return min(full_minutes(labels), TRAINING_SHARE * left.total_seconds() / 60.0)


def full_minutes(labels: int) -> float:
    """How long a full training takes where nothing else is said."""
    return min(MOST_MINUTES, max(LEAST_MINUTES, MINUTES_A_LABEL * labels))


def is_worthwhile(minutes: float, usual: float) -> bool:
    """Whether so many minutes of training, at the end of a window, are enough to begin with; `usual` is a night's."""
    return minutes >= min(LEAST_MINUTES, ENOUGH * usual)


def is_news(current: Mapping[str, str], records: Sequence[Mapping[str, Any]], usual: float = 0.0) -> bool:
    """Whether `current` labels (case id -> digest) are others than the last full run was offered.

    One that trained for much less than the `usual` minutes has not learned from them what a night teaches.
    """
    full = [
        record
        for record in records
        if record.get("kind") == "full"
        and record.get("decision") in FINISHED
        and _minutes_trained(record) >= ENOUGH * usual
    ]
    return not full or dict(full[-1].get("label_digests", {})) != dict(current)


def _minutes_trained(record: Mapping[str, Any]) -> float:
    # Older records say only what was planned, or not even that.
    told = (record.get(key) for key in ("trained_minutes", "minutes"))
    return next((float(minutes) for minutes in told if isinstance(minutes, int | float)), math.inf)


class NightFile:
    """`nightly.json`, which only the server's scheduler and its routes write, whole and one after the other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self) -> NightLog:
        """What is noted; nothing where there is none, or none that can be read."""
        stored = read_json(self._path)
        try:
            return NightLog(
                datetime.fromisoformat(stored["begun"]), int(stored["starts"]), bool(stored["over"])
            )
        except (KeyError, ValueError, TypeError):
            return NightLog()

    def note_start(self, begun: datetime) -> None:
        """One more start of that night's run."""
        self._change(begun, lambda log: replace(log, starts=log.starts + 1))

    def take_back_start(self, begun: datetime) -> None:
        """The last start of that night's run does not count."""
        self._change(begun, lambda log: replace(log, starts=max(0, log.starts - 1)))

    def note_over(self, begun: datetime) -> None:
        """That night's run is not to be started again."""
        self._change(begun, lambda log: replace(log, over=True))

    def _change(self, begun: datetime, change: Callable[[NightLog], NightLog]) -> None:
        with self._lock:
            log = self.read()
            log = change(log if log.begun == begun else NightLog(begun))
            write_json(self._path, {"begun": begun.isoformat(), "starts": log.starts, "over": log.over})


def _has_ended(begun: datetime, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a nightly run that was started in this night came to its end."""
    return any(
        record.get("trigger") == "nightly"
        and record.get("decision") in FINISHED
        and _time_of(record) >= begun
        for record in records
    )


def _time_of(record: Mapping[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(record.get("time", "")))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
