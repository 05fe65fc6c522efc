"""When the app cannot start, the process ends with one line that says why."""

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lib.errors import MedsaError

EXIT_CODE = 2


@contextmanager
def or_exit() -> Iterator[None]:
    """Ends the process with one line on stderr when the block raises a MedsaError."""
    try:
        yield
    except MedsaError as error:
        _exit(f"medsa: cannot start: {' '.join(str(error).split())}")


def _exit(line: str) -> NoReturn:
    if not _inside_event_loop():
        raise SystemExit(line)  # Python writes the line to stderr and ends with code 1
    # Inside the server's startup, uvicorn and starlette turn every exception, SystemExit too, into two
    # tracebacks around the line that matters. Nothing is open yet that would need an orderly end.
    sys.stderr.write(line + "\n")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def _inside_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
