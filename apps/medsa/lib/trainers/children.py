"""What MONAI Label's child processes (training, scoring) do about the server that started them.

The server writes its process id and the base it serves with into the environment its children inherit. A
child runs at a lower priority, so that clicks come first, and ends by itself soon after the server is gone,
also after a kill -9.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lib.environment import give_way, prepare_environment
from lib.memory import keep_freed_memory

SERVER_PID = "MEDSA_SERVER_PID"
SERVER_BASE = "MEDSA_SERVER_BASE"
CHILD_MAIN = "monailabel.interfaces.utils.app"
_CHECK_SECONDS = 1.0
_stop = threading.Event()  # set by the signal handler, read by the training


def announce_server() -> None:
    """Called once by the server, before it starts children."""
    os.environ[SERVER_PID] = str(os.getpid())
    os.environ.pop(SERVER_BASE, None)
    prepare_environment()


def is_server() -> bool:
    """Whether this process is the server."""
    return os.environ.get(SERVER_PID) == str(os.getpid())


def announce_base(name: str) -> None:
    """Called once by the server, when it has chosen its base: its children use the same."""
    os.environ[SERVER_BASE] = name


def announced_base() -> str | None:
    """The base that the server chose; None where there is no server, and in the server until it has chosen."""
    return os.environ.get(SERVER_BASE)


def become_child() -> None:
    """Lowers the priority and ties this process to the server's life; does nothing in any other process.

    SIGTERM then asks for a stop, see `stop_requested`. Commands train and score in their own process, which keeps its
    parent.
    """
    if not _is_child():
        return
    give_way()
    keep_freed_memory()
    listen_for_stop()
    server = os.environ.get(SERVER_PID)
    if server is not None:
        threading.Thread(target=_end_with, args=(int(server),), name="server-watch", daemon=True).start()


def listen_for_stop() -> None:
    """From here on SIGTERM and SIGINT ask for a stop instead of ending the process. Only in the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note_stop)


@contextmanager
def stopping_by_signal() -> Iterator[None]:
    """The same as long as the block lasts, for a command."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _stop.clear()
    listen_for_stop()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested() -> bool:
    """Whether this process was asked to stop."""
    return _stop.is_set()


def _note_stop(number: int, frame: object) -> None:
    _stop.set()


def _is_child() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == CHILD_MAIN


def _end_with(server: int) -> None:
    while os.getppid() == server:
        time.sleep(_CHECK_SECONDS)
    # Not sys.exit: that would end only this thread. What the others do is lost without the server anyway.
    os._exit(1)
