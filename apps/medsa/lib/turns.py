"""Whose turn it is to use the device: one request at a time, fair between clients, clicks before everything else.

Concurrency. All state is guarded by one condition's lock, which is only held for bookkeeping, never while the device
is used. Whoever holds the turn uses the device alone.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asker:
    """Who wants the device.

    `client` names the annotator, `background` marks work nobody waits for (it goes on only while no click waits),
    `deadline` is the monotonic time after which the answer is of no use, `gone` is set when the client has left.
    """

    client: str = "local"
    background: bool = False
    deadline: float | None = None
    gone: threading.Event = field(default_factory=threading.Event)


class Turn:
    """The right to use the device, held inside `DeviceTurns.turn`."""

    def give_way(self) -> None:
        """Between two pieces of work: lets those who come first go first, then goes on.

        Raises BusyError and ClientGoneError as `DeviceTurns.turn` does.
        """


class DeviceTurns:
    """The turns of one device."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, asker: Asker) -> Iterator[Turn]:
        """Waits for the turn and gives it back when the block ends.

        Raises BusyError when the asker's deadline passes, ClientGoneError when the client leaves.
        """
        with self._lock:
            yield Turn()
