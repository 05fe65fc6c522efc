"""Training gives way to clicks: between two steps it waits until nobody has clicked for a moment.

The server touches one file, `<state>/clicked`, whenever a click comes in, goes on or is answered; training, in another
process, looks how long ago that was. There is nothing to lock: a look that comes too early costs one step.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

NAME = "clicked"
QUIET_SECONDS = 0.7  # so long after the last sign of a click nobody waits any more
LOOK_SECONDS = 0.05
# Clicks without a pause must not end training: after so long it makes one step.
PATIENCE_SECONDS = 20.0


class ClickSign:
    """The server's side. `touch` costs some microseconds and never fails."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME

    def touch(self) -> None:
        """Somebody is waiting for an answer now."""
        try:
            os.utime(self._path)
        except OSError:
            self._make()

    def _make(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        except OSError:
            # A click must be answered even where nothing can be written; training then does not give way.
            return


class ClicksFirst:
    """Training's side. `path` None: nobody clicks."""

    def __init__(
        self,
        path: Path | None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path, self._now, self._sleep = path, now, sleep

    @classmethod
    def under(cls, state: Path) -> "ClicksFirst":
        """That of the server with this state folder."""
        return cls(state / NAME)

    def wait(self, should_stop: Callable[[], bool], on_wait: Callable[[], None] = lambda: None) -> float:
        """Returns when nobody clicks, `should_stop()`, or patience is over: the seconds spent.

        `on_wait` is called once before it waits.
        """
        waited = 0.0
        while waited < PATIENCE_SECONDS and self._clicked() and not should_stop():
            if waited == 0.0:
                on_wait()
            self._sleep(LOOK_SECONDS)
            waited += LOOK_SECONDS
        return waited

    def _clicked(self) -> bool:
        if self._path is None:
            return False
        try:
            age = self._now() - self._path.stat().st_mtime
        except OSError:
            return False
        # A sign from the future is that of a clock that was set back since: it must not stop training for ever.
        return abs(age) < QUIET_SECONDS


NO_CLICKS = ClicksFirst(None)
