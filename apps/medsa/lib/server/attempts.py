"""How often training was started by itself for the same queue: `attempts.json`, which outlasts a restart.

Only the housekeeping thread and the stop route write it, each whole and atomically; the one that comes
later counts.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from lib.files import write_json

# The first start, and one more after a crash. Then it waits for another label, or for somebody to ask.
MAX_STARTS = 2


class Attempts:
    """The starts for the current queue of labels; a queue is a mapping of case id to label digest."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def may_start(self, queue: Mapping[str, str]) -> bool:
        """Whether this queue has a start left."""
        return self._starts(queue) < MAX_STARTS

    def note_start(self, queue: Mapping[str, str]) -> None:
        """Counts one start for this queue."""
        self._write(queue, self._starts(queue) + 1)

    def note_stop(self, queue: Mapping[str, str]) -> None:
        """Somebody stopped it: this queue is not started again by itself."""
        self._write(queue, MAX_STARTS)

    def _starts(self, queue: Mapping[str, str]) -> int:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return int(content["starts"]) if content["queue"] == _fingerprint(queue) else 0
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0

    def _write(self, queue: Mapping[str, str], starts: int) -> None:
        write_json(self._path, {"queue": _fingerprint(queue), "starts": starts})


def _fingerprint(queue: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(queue.items())).encode()).hexdigest()
