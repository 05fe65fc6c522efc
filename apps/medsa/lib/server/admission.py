"""How many requests for the model are taken at once; the others are told to come again.

Concurrency. Shared between requests: the count, guarded by one lock that is never held while anything else is done.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lib.errors import BusyError

RETRY_AFTER_SECONDS = 2  # a click takes about one second, so that by then some place is free


class Admission:
    """At most `limit` places."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for as long as the block lasts; raises BusyError when there is none."""
        with self._lock:
            if self._taken >= self._limit:
                raise BusyError(
                    f"all {self._limit} places of the queue are taken; ask again", RETRY_AFTER_SECONDS
                )
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1
