"""One line instead of a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from lib.errors import SettingsError
from lib.server import startup
from lib.server.startup import or_exit

APP = Path(startup.__file__).resolve().parents[2]
INSIDE_A_LOOP = """
import asyncio, sys
sys.path.insert(0, {app!r})
from lib.errors import CheckpointError
from lib.server.startup import or_exit
async def start():
    with or_exit():
        raise CheckpointError("two\\nlines")
asyncio.run(start())
"""


def test_nothing_happens_when_all_is_well() -> None:
    with or_exit():
        done = True
    assert done


def test_outside_a_server_the_process_is_asked_to_end() -> None:
    with pytest.raises(SystemExit, match="medsa: cannot start: key: 'x' is not accepted"), or_exit():
        raise SettingsError("key", "x", "y")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), or_exit():
        raise ZeroDivisionError


def test_inside_the_servers_event_loop_one_line_and_a_code() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INSIDE_A_LOOP.format(app=str(APP))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (2, "medsa: cannot start: two lines\n")
