"""Child processes end with the server that started them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.environment import NICENESS
from lib.trainers import children

APP = Path(children.__file__).resolve().parents[2]
# A child that MONAI Label would have started, in a process whose main module has that name.
CHILD = """
import sys, time
sys.path.insert(0, {app!r})
class Spec: name = "monailabel.interfaces.utils.app"
sys.modules["__main__"].__spec__ = Spec()
from lib.trainers.children import become_child
become_child()
print("running", flush=True)
time.sleep(600)
"""


def start_child(server_pid: int) -> subprocess.Popen[str]:
    environment = {**os.environ, children.SERVER_PID: str(server_pid)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(app=str(APP))], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_an_orphan_ends_by_itself() -> None:
    child = start_child(server_pid=1)  # not the parent: as if the server had been killed
    assert child.wait(timeout=250) == 1


def test_a_child_of_the_server_goes_on() -> None:
    child = start_child(os.getpid())
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        assert child.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == max(os.nice(0), NICENESS)
    finally:
        child.kill()
        child.wait()


def test_a_child_that_is_told_to_end_is_asked_to_stop() -> None:
    asks = CHILD.replace("time.sleep(600)", "from lib.trainers.children import stop_requested") + (
        "while not stop_requested(): time.sleep(0.05)\nprint('kept', flush=True)\n"
    )
    environment = {**os.environ, children.SERVER_PID: str(os.getpid())}
    child = subprocess.Popen(
        [sys.executable, "-c", asks.format(app=str(APP))], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "kept\n"
    assert child.wait(timeout=60) == 0


def test_a_command_listens_only_as_long_as_it_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with children.stopping_by_signal():
        assert not children.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert children.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before
    with children.stopping_by_signal():
        assert not children.stop_requested(), "an earlier stop is no stop of this command"


def test_the_base_is_the_servers_once_it_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (children.SERVER_PID, children.SERVER_BASE, "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "inherited from who knows where")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")  # so that it is put back as it was
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    children.announce_server()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert children.announced_base() is None
    children.announce_base("vit_t")
    assert children.announced_base() == "vit_t"


def test_the_server_itself_is_left_as_it_is() -> None:
    before = os.nice(0)
    children.become_child()
    assert os.nice(0) == before
