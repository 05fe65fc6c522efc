"""Stopping a real child process through MONAI Label's own bookkeeping."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from monailabel.utils.async_tasks import utils

from lib.server import child_processes
from lib.server.child_processes import is_active, is_automatic, running_training, stop_training

ON = "print('on', flush=True); time.sleep(600)"
HEARS = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); {ON}"
DEAF = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {ON}"
Start = Callable[[str], dict[str, Any]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Runs a program as MONAI Label's training child, with its own thread that waits for it."""
    for name in ("background_tasks", "background_processes", "background_executors"):
        monkeypatch.setattr(utils, name, {})
    monkeypatch.setenv("PYTHONPATH", "")
    began: list[Any] = []
    popen = subprocess.Popen

    def launch(program: str) -> dict[str, Any]:
        def replaced(command: list[str], **named: Any) -> Any:
            process = popen([sys.executable, "-c", program], **named)
            began.append(process)
            return process

        monkeypatch.setattr(utils.subprocess, "Popen", replaced)
        task = utils.run_background_task({"model": "medsa", "trigger": "labels"}, "train")
        deadline = time.monotonic() + 60
        while "on" not in task.get("details", ()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return task

    yield launch
    for process in began:
        process.kill()


def test_without_a_training_there_is_nothing_to_stop(start: Start) -> None:
    assert running_training() is None
    assert stop_training() is None


def test_one_that_hears_ends_by_itself_and_counts_as_stopped(start: Start) -> None:
    task = start(HEARS)
    assert running_training() is task
    assert is_automatic(task)
    assert stop_training() is task
    assert task["status"] == "STOPPED"
    assert running_training() is None
    assert utils.processes("train") == {}


def test_one_that_does_not_hear_is_killed_in_time(start: Start) -> None:
    task = start(DEAF)
    (process,) = utils.processes("train").values()
    began = time.monotonic()
    stopped = stop_training(patience_s=1.0)
    assert time.monotonic() - began < 5
    assert stopped is not None
    assert stopped["id"] == task["id"]
    assert task["status"] == "STOPPED"
    assert utils.processes("train") == {}
    assert process.poll() is not None, "it is gone when it is called stopped"


def test_one_that_was_just_handed_in_is_stopped_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process comes a moment later."""
    task = start(HEARS)
    (process,) = utils.processes("train").values()
    shown = iter([{}, {}])
    task["status"] = "SUBMITTED"
    monkeypatch.setattr(
        child_processes, "processes", lambda method: next(shown, None) or utils.processes(method)
    )
    assert stop_training() is task
    assert process.wait(timeout=30) == 0, "it heard"


def test_one_that_never_begins_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process cannot be made, MONAI Label's thread ends without a word."""

    def refused(*given: Any, **named: Any) -> Any:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(child_processes, "START_S", 0.2)
    monkeypatch.setattr(utils.subprocess, "Popen", refused)
    task = utils.run_background_task({"model": "medsa"}, "train")
    began = time.monotonic()
    assert stop_training() is None
    assert time.monotonic() - began < 5, "not waited for long"
    assert is_active("train"), "it may still begin"
    monkeypatch.setattr(child_processes, "LOST_S", 0.0)
    assert not is_active("train")
    assert task["status"] == "ERROR"
    assert not is_active("train")


def test_one_that_waits_behind_another_is_not_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_processes, "LOST_S", 0.0)
    start(HEARS)
    behind = {"id": "behind", "status": "SUBMITTED"}
    utils.tasks("train").append(behind)
    assert is_active("train")
    assert behind["status"] == "SUBMITTED"


def test_a_persons_training_is_not_automatic() -> None:
    assert not is_automatic({"request": {"trigger": "person"}})
    assert not is_automatic({"request": {}})
    assert all(is_automatic({"request": {"trigger": name}}) for name in ("labels", "idle", "nightly"))
