"""Trainings and scorings, which are child processes of MONAI Label's: whether one runs, and starting and stopping it.

A training that is to stop is asked to, so that it keeps its checkpoint, and killed where it does not hear; MONAI
Label's own stop kills at once. Its bookkeeping is used as it is: `tasks("train")` and `processes("train")`, which its
worker thread changes when a child ends. Where a process cannot be started (no memory, too many processes) that thread
says nothing, and the task is about to begin for ever; here it is given up. Stops are taken one after the other
(`_lock`); `_waiting` is the housekeeping thread's and the requests', who at worst note a moment twice.
"""

import logging
import threading
import time
from typing import Any

from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks

from lib.training.request import RunRequest

log = logging.getLogger(__name__)

PATIENCE_S = 7.0  # 10 s are promised for all of a stop
KILL_S = 2.5  # a process that was killed is gone some milliseconds later, or seconds where cores are few
POLL_S = 0.05
START_S = 1.0  # a process is there some milliseconds after it was asked for
LOST_S = 30.0  # of a task without a process: it does not come any more
AUTOMATIC = ("labels", "idle", "nightly")
BEGUN = ("SUBMITTED", "RUNNING")

_lock = threading.Lock()
# Method -> task id -> since when it has been without a process while no other one ran.
_waiting: dict[str, dict[str, float]] = {}


def is_active(method: str) -> bool:
    """Whether a child process of this kind ("train", "scoring") runs, is about to, or is being stopped."""
    if processes(method):
        _waiting[method] = {}  # it is waited for that one's end
        return True
    coming = [task for task in list(tasks(method)) if task["status"] in BEGUN]
    return sum(not _is_lost(task, method) for task in coming) > 0  # each is looked at


def _is_lost(task: dict[str, Any], method: str) -> bool:
    now = time.monotonic()
    if now - _waiting.setdefault(method, {}).setdefault(task["id"], now) < LOST_S:
        return False
    task["status"] = "ERROR"
    log.error("a child process for %s did not begin within %g s and is given up", method, LOST_S)
    return True


def running_training() -> dict[str, Any] | None:
    """MONAI Label's task of the training that runs; None when none does.

    One that was just handed in has no process yet: it is waited for, a moment.
    """
    deadline = time.monotonic() + START_S
    while True:
        running = set(processes("train"))
        known = list(tasks("train"))
        found = next((task for task in known if task["id"] in running), None)
        coming = any(task["status"] in BEGUN for task in known)
        if found is not None or not coming or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)


def start_training(request: RunRequest) -> dict[str, Any] | None:
    """Starts one as the server does; None when one runs already."""
    task, _ = AsyncTask.run("train", request={"model": "medsa", **request.to_json()})
    return task


def is_automatic(task: dict[str, Any]) -> bool:
    """Whether the server started it, and not a person."""
    return task["request"].get("trigger") in AUTOMATIC


def stop_training(patience_s: float = PATIENCE_S) -> dict[str, Any] | None:
    """Ends the training that runs, within about `patience_s`; returns its task, None when none runs."""
    with _lock:
        task = running_training()
        process = processes("train").get(task["id"]) if task is not None else None
        if task is None or process is None:
            return None
        # Before the signal: the thread that waits for the child would call its end an error.
        task["status"] = "STOPPED"
        process.terminate()
        if _has_ended(task["id"], process, patience_s):
            log.info("training stopped; its checkpoint is kept")
            return task
        log.warning(
            "training did not stop within %g s and is killed; its last checkpoint is kept", patience_s
        )
        killed = AsyncTask.stop("train") or task
        # What is called stopped has stopped.
        if not _has_ended(task["id"], process, KILL_S):
            log.error("the training's process %d is there %g s after it was killed", process.pid, KILL_S)
        return killed


def _has_ended(task_id: str, process: Any, patience_s: float) -> bool:
    """Waits until the process is over and MONAI Label knows it, at most so long; whether it is."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if process.poll() is not None and task_id not in processes("train"):
            return True
        time.sleep(POLL_S)
    return False
