"""Which case was offered to whom: a case that one annotator works on is not offered to another.

Shared between requests: the file `leases.json`, {case: {"client", "until"}} with seconds since 1970,
guarded by the file lock `leases.lock` beside it. It is read and written whole, so a restart loses nothing.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from filelock import FileLock

from lib.files import write_json

log = logging.getLogger(__name__)


class Lease(TypedDict):
    """Who was offered the case, and until when it is kept for that client."""

    client: str
    until: float


class Leases:
    """The leases of one task. Times are seconds since 1970."""

    def __init__(self, path: Path, minutes: float) -> None:
        self._path = path
        self._seconds = minutes * 60
        self._lock_path = path.with_suffix(".lock")

    def offer(self, client: str, rank: Callable[[], Sequence[str]], now: float) -> str | None:
        """The case that `client` has already, else the first of `rank()` that nobody has, else None.

        `rank()` gives all cases that are unlabelled now: leases of other cases end here. It is called under the
        lock, since a case that was labelled while one waited for the lock must not be offered.
        """
        with self._lock():
            ranked = rank()
            unlabelled = set(ranked)
            table = {
                case: lease
                for case, lease in self._read().items()
                if lease["until"] > now and case in unlabelled
            }
            own = [case for case, lease in table.items() if lease["client"] == client]
            case = own[0] if own else next((case for case in ranked if case not in table), None)
            if case is not None:
                table[case] = Lease(client=client, until=now + self._seconds)
            write_json(self._path, table)
        return case

    def release(self, case: str) -> None:
        """Ends the lease of `case`, if there is one."""
        with self._lock():
            table = self._read()
            if table.pop(case, None) is not None:
                write_json(self._path, table)

    def table(self) -> dict[str, Lease]:
        """All leases on record, the ones that ran out included."""
        return self._read()

    def _lock(self) -> FileLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._lock_path)

    def _read(self) -> dict[str, Lease]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return {
                str(case): Lease(client=str(lease["client"]), until=float(lease["until"]))
                for case, lease in content.items()
            }
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s cannot be read; all leases end", self._path.name)
            return {}
