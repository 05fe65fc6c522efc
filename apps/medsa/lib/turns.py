"""Whose turn it is to use the device: one request at a time, fair between clients, clicks before everything else.

Concurrency. All state is guarded by one lock, which is only held for bookkeeping, never while the device is used or
waited for. Whoever holds the turn uses the device alone. A thread that holds a turn must not ask for a second one.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lib.errors import BusyError, ClientGoneError

POLL_SECONDS = 0.25  # a waiting asker finds out within this time that its client has left
LONGEST_RETRY_SECONDS = 30


@dataclass(frozen=True)
class Asker:
    """Who wants the device.

    `client` names the annotator, `background` marks work nobody waits for (it goes on only while no click waits),
    `deadline` is the monotonic time after which the answer is of no use, `gone` is set when the client has left.
    `limit_s` is the limit in seconds that the deadline comes from, for the text of the refusal.
    """

    client: str = "local"
    background: bool = False
    deadline: float | None = None
    gone: threading.Event = field(default_factory=threading.Event)
    limit_s: float | None = None


@dataclass(eq=False)
class _Ticket:
    """A place in line; `granted` is set while its owner holds the turn. Times are the clock's, in seconds."""

    asker: Asker
    asked: float
    waited: float = 0.0
    granted: threading.Event = field(default_factory=threading.Event)


class Turn:
    """The right to use the device, held inside `DeviceTurns.turn`."""

    def __init__(self, turns: "DeviceTurns", ticket: _Ticket) -> None:
        self._turns, self._ticket = turns, ticket

    @property
    def waited_s(self) -> float:
        """Seconds that were spent waiting so far, first for the turn and then in `give_way`."""
        return self._ticket.waited

    def tell(self) -> None:
        """Says that a click is still being answered, to what gives way to clicks in other processes."""
        self._turns._tell(self._ticket.asker)

    def give_way(self) -> None:
        """Between two pieces of work: lets those who come first go first, then goes on.

        Background work waits until no click waits; a click lets each other client that waits go once. Raises
        BusyError and ClientGoneError as `DeviceTurns.turn` does, also when nobody waits.
        """
        self._turns._give_way(self._ticket)


class DeviceTurns:
    """The turns of one device. `on_click` is called, quickly, whenever a click asks, goes on or is done."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, on_click: Callable[[], None] = lambda: None
    ) -> None:
        self._clock, self._on_click = clock, on_click
        self._lock = threading.Lock()
        self._holder: _Ticket | None = None
        # The waiting clients in the order in which they are served, each with its tickets, oldest first.
        self._clients: OrderedDict[str, deque[_Ticket]] = OrderedDict()
        self._background: deque[_Ticket] = deque()

    @contextmanager
    def turn(self, asker: Asker) -> Iterator[Turn]:
        """Waits for the turn and gives it back when the block ends.

        Raises BusyError when the asker's deadline passes, ClientGoneError when the client leaves.
        """
        ticket = _Ticket(asker, self._clock())
        self._tell(asker)
        with self._lock:
            self._line_of(asker).append(ticket)
            self._grant()
        try:
            self._wait(ticket)
            yield Turn(self, ticket)
        finally:
            with self._lock:
                self._leave(ticket)
            self._tell(asker)

    def _tell(self, asker: Asker) -> None:
        if not asker.background:
            self._on_click()

    def _give_way(self, ticket: _Ticket) -> None:
        self._tell(ticket.asker)
        with self._lock:
            if self._holder is ticket and self._goes_later(ticket.asker):
                ticket.granted.clear()
                # Before its client's younger requests, but that client goes after the others.
                self._line_of(ticket.asker).appendleft(ticket)
                self._release()
        self._wait(ticket)

    def _goes_later(self, asker: Asker) -> bool:
        if asker.background:
            return bool(self._clients)
        return any(client != asker.client for client in self._clients)

    def _line_of(self, asker: Asker) -> deque[_Ticket]:
        return self._background if asker.background else self._clients.setdefault(asker.client, deque())

    def _wait(self, ticket: _Ticket) -> None:
        begun, waited_before = self._clock(), ticket.waited
        while True:
            now = self._clock()
            ticket.waited = waited_before + now - begun
            _check(ticket, now)
            deadline = ticket.asker.deadline
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - now)
            if ticket.granted.wait(left):
                ticket.waited = waited_before + self._clock() - begun
                return
            self._tell(ticket.asker)

    def _grant(self) -> None:
        """Gives a free turn to the next in line. The caller holds the lock, as for all below."""
        ticket = self._next() if self._holder is None else None
        if ticket is not None:
            self._holder = ticket
            ticket.granted.set()

    def _next(self) -> _Ticket | None:
        if not self._clients:
            return self._background.popleft() if self._background else None
        client, line = next(iter(self._clients.items()))
        ticket = line.popleft()
        if not line:
            del self._clients[client]
        return ticket

    def _release(self) -> None:
        """Takes the turn from its holder, whose client is the last in the round from now on."""
        holder, self._holder = self._holder, None
        # Not when it got the turn: who came while it was held goes before this client's next request.
        if holder is not None and not holder.asker.background and holder.asker.client in self._clients:
            self._clients.move_to_end(holder.asker.client)
        self._grant()

    def _leave(self, ticket: _Ticket) -> None:
        if self._holder is ticket:
            self._release()
            return
        line = self._line_of(ticket.asker)
        if ticket in line:
            line.remove(ticket)
        if not ticket.asker.background and not line:
            del self._clients[ticket.asker.client]


def _check(ticket: _Ticket, now: float) -> None:
    asker = ticket.asker
    if asker.gone.is_set():
        raise ClientGoneError("the client has left")
    if asker.deadline is None or now < asker.deadline:
        return
    limit = "" if asker.limit_s is None else f"; the limit is {asker.limit_s:g} s"
    text = f"the model is busy: not done after {now - ticket.asked:.1f} s, {ticket.waited:.1f} s of them waiting{limit}"
    # Who waited that long in vain finds a shorter queue after about the same time.
    retry_after_s = min(LONGEST_RETRY_SECONDS, max(1, math.ceil(ticket.waited)))
    raise BusyError(text, retry_after_s)
