"""How often training was tried by itself for the same queue: `attempts.json`, which outlasts a restart.

Only the housekeeping thread and the stop route write it, each whole and atomically; the one that comes
later counts.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from lib.files import read_json, write_json

# After so many runs that came to no result it waits for another label, or for somebody to ask.
MAX_FAILURES = 2
# A run that ended with its server is no failure, but one that always takes the server along must end some time.
MAX_STARTS = 6


class Attempts:
    """The starts for the current queue of labels; a queue is a mapping of case id to label digest."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def may_start(self, queue: Mapping[str, str]) -> bool:
        """Whether this queue is to be tried (again)."""
        starts, failures = self._counts(queue)
        return failures < MAX_FAILURES and starts < MAX_STARTS

    def note_start(self, queue: Mapping[str, str]) -> None:
        """Counts one start for this queue."""
        starts, failures = self._counts(queue)
        self._write(queue, starts + 1, failures)

    def take_back_start(self, queue: Mapping[str, str]) -> None:
        """The last start does not count."""
        starts, failures = self._counts(queue)
        self._write(queue, max(0, starts - 1), failures)

    def note_failure(self, queue: Mapping[str, str]) -> None:
        """A run for this queue ended by itself, without a result."""
        starts, failures = self._counts(queue)
        self._write(queue, starts, failures + 1)

    def note_stop(self, queue: Mapping[str, str]) -> None:
        """Somebody stopped it: this queue is not started again by itself."""
        self._write(queue, self._counts(queue)[0], MAX_FAILURES)

    def _counts(self, queue: Mapping[str, str]) -> tuple[int, int]:
        """Starts and failures so far."""
        stored = read_json(self._path)
        try:
            counts = int(stored["starts"]), int(stored["failures"])
        except (ValueError, KeyError, TypeError):
            return 0, 0
        return counts if stored.get("queue") == _fingerprint(queue) else (0, 0)

    def _write(self, queue: Mapping[str, str], starts: int, failures: int) -> None:
        content = {"queue": _fingerprint(queue), "starts": starts, "failures": failures}
        write_json(self._path, content)


def _fingerprint(queue: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(queue.items())).encode()).hexdigest()
