"""Which case was offered to whom: a case that one annotator works on is not offered to another.

Shared between requests: the file `leases.json`, {"leases": {case: {"client", "until"}}, "skipped": {client: {case:
until}}} with seconds since 1970, guarded by the file lock `leases.lock` beside it. It is read and written whole, so a
restart loses nothing.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from lib.errors import InputError
from lib.files import write_json

log = logging.getLogger(__name__)

EXTENDED_SECONDS = 60.0


class Lease(TypedDict):
    """Who was offered the case, and until when it is kept for that client."""

    client: str
    until: float


@dataclass
class _Book:
    """All that the file says; `skipped` are the cases that a client gave back, and until when they stay away."""

    leases: dict[str, Lease] = field(default_factory=dict)
    skipped: dict[str, dict[str, float]] = field(default_factory=dict)

    def of(self, client: str) -> str | None:
        return next((case for case, lease in self.leases.items() if lease["client"] == client), None)


class Leases:
    """The leases of one task. Times are seconds since 1970."""

    def __init__(self, path: Path, minutes: float) -> None:
        self._path = path
        self._seconds = minutes * 60
        self._lock_path = path.with_suffix(".lock")
        self._extended: dict[str, float] = {}  # when each was extended last, by this process

    def offer(self, client: str, rank: Callable[[], Sequence[str]], now: float) -> str | None:
        """The case that `client` has already, else the first of `rank()` that nobody has, else None.

        What the client gave back comes last. `rank()` gives all cases that are unlabelled now: leases of other cases
        end here. It is called under the lock, since a case that was labelled while one waited for the lock must not be
        offered.
        """
        with self._lock():
            ranked = rank()
            book = _current(self._read(), set(ranked), now)
            free = [case for case in ranked if case not in book.leases]
            given_back = book.skipped.get(client, {})
            case = book.of(client) or next((one for one in free if one not in given_back), None)
            case = case or min(free, key=lambda one: given_back[one], default=None)
            if case is not None:
                book.leases[case] = Lease(client=client, until=now + self._seconds)
            self._write(book)
        return case

    def release(self, case: str) -> None:
        """Ends the lease of `case`, if there is one."""
        with self._lock():
            book = self._read()
            if book.leases.pop(case, None) is not None:
                self._write(book)

    def give_back(self, case: str, client: str, now: float) -> None:
        """`client` does not want `case`: others may get it at once, the client itself not for as long as a lease lasts.

        Also where its time is over. Raises InputError where somebody else has the case.
        """
        with self._lock():
            book = self._read()
            lease = book.leases.get(case)
            if lease is not None and lease["until"] > now and lease["client"] != client:
                raise InputError("client_id", client, f"the client to whom {case} is offered")
            book.leases.pop(case, None)
            book.skipped.setdefault(client, {})[case] = now + self._seconds
            self._write(book)

    def extend(self, case: str, now: float) -> None:
        """Somebody works on `case`: the lease that it has, if any, lasts from now on. At most once a minute.

        Nothing is waited for, and nothing goes wrong: where another one holds the lock, or nothing can be written, the
        next call does it.
        """
        if now - self._extended.get(case, -math.inf) < min(EXTENDED_SECONDS, self._seconds / 4):
            return
        try:
            with self._lock().acquire(timeout=0):
                self._extend(case, now)
        except Timeout:
            return
        except OSError as error:
            log.warning("a lease could not be extended (%s)", type(error).__name__)
            return
        self._extended[case] = now

    def _extend(self, case: str, now: float) -> None:
        book = self._read()
        lease = book.leases.get(case)
        if lease is not None and lease["until"] > now:
            book.leases[case] = Lease(client=lease["client"], until=now + self._seconds)
            self._write(book)

    def held(self, now: float) -> set[str]:
        """The cases that somebody has."""
        return {case for case, lease in self.table().items() if lease["until"] > now}

    def table(self) -> dict[str, Lease]:
        """All leases on record, the ones that ran out included."""
        return self._read().leases

    def _lock(self) -> FileLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._lock_path)

    def _read(self) -> _Book:
        try:
            return _book(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return _Book()
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s cannot be read; all leases end", self._path.name)
            return _Book()

    def _write(self, book: _Book) -> None:
        write_json(self._path, {"leases": book.leases, "skipped": book.skipped})


def _book(content: Any) -> _Book:
    return _Book(
        {
            str(case): Lease(client=str(lease["client"]), until=float(lease["until"]))
            for case, lease in content["leases"].items()
        },
        {
            str(client): {str(case): float(until) for case, until in cases.items()}
            for client, cases in content["skipped"].items()
        },
    )


def _current(book: _Book, unlabelled: set[str], now: float) -> _Book:
    """Without what is over, and what is about cases that were labelled meanwhile."""
    leases = {
        case: lease for case, lease in book.leases.items() if lease["until"] > now and case in unlabelled
    }
    skipped = {
        client: kept
        for client, cases in book.skipped.items()
        if (kept := {case: until for case, until in cases.items() if until > now and case in unlabelled})
    }
    return _Book(leases, skipped)
