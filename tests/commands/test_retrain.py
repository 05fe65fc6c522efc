"""The night's retraining from the command line, as a process of its own."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nibabel
import numpy as np
import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cli
from lib.commands import retrain
from lib.environment import NICENESS
from lib.errors import InputError
from lib.files import file_digest
from lib.training.releases import Releases
from lib.training.request import RunRequest

CLI = Path(__file__).resolve().parents[2] / "apps" / "medsa" / "cli.py"
SHAPE = (32, 32, 6)
# By the hash of their names the first three validate, so that no case has to be left out in turn.
CASES = ("case2", "case5", "case8", "case0", "case1")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Small volumes with a bright ball each, labelled."""
    final = tmp_path / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    for seed, name in enumerate(CASES):
        rng = np.random.default_rng(seed)
        centre = np.array([16, 16, 3]) + rng.uniform(-4, 4, 3) * [1, 1, 0.3]
        place = np.moveaxis(np.indices(SHAPE), 0, -1)
        inside = (((place - centre) / [7, 7, 2.2]) ** 2).sum(-1) < 1
        image = (80 * inside + rng.normal(0, 8, SHAPE)).astype(np.float32)
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "studies" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), affine), final / f"{name}.nii.gz")
    return tmp_path / "studies"


def start(
    studies: Path, *options: str, launcher: tuple[str, ...] = (), name: str = "retrain"
) -> "subprocess.Popen[str]":
    command = [sys.executable, *launcher, str(CLI), name, "--studies", str(studies), "--task", "object"]
    command += ["--state", str(studies.parent / "state"), "--conf", "base", "vit_t", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def last_record(studies: Path) -> dict:
    return Releases(studies.parent / "state").records()[-1]


def test_it_trains_on_all_labels_from_the_base(studies: Path) -> None:
    process = start(studies, "--minutes", "0.1")
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said
    record = last_record(studies)
    assert record["decision"] in ("published", "refused"), said
    assert (record["kind"], record["trigger"], record["start"]) == ("full", "command line", "base")
    assert said.splitlines()[0].startswith(record["decision"])
    state = studies.parent / "state"
    client = MlflowClient(tracking_uri=f"sqlite:///{state / 'mlflow.db'}")
    (tracked,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert tracked.data.metrics["cases/steps"] == record["steps"] > 0
    assert tracked.data.tags["decision"] == record["decision"]
    (curves,) = (state / "tensorboard").iterdir()
    assert EventAccumulator(str(curves)).Reload().Scalars("loss")


def until_it_makes_steps(studies: Path, process: "subprocess.Popen[str]") -> None:
    progress = studies.parent / "state" / "progress.json"
    deadline = time.monotonic() + 200
    while not progress.exists() or "step" not in json.loads(progress.read_text())["status"]:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_signal_stops_train_with_the_same_code(studies: Path) -> None:
    process = start(studies, "--conf", "train_minutes", "30", name="train")
    until_it_makes_steps(studies, process)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == max(os.nice(0), NICENESS), (
        "clicks of a server come first"
    )
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert last_record(studies)["decision"] == "stopped"


def test_a_signal_stops_it_and_the_next_one_goes_on(studies: Path) -> None:
    process = start(studies, "--minutes", "30")
    until_it_makes_steps(studies, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert last_record(studies)["decision"] == "stopped"
    assert (studies.parent / "state" / "checkpoints" / "full.pt").exists()
    again = start(studies, "--minutes", "0.05")
    said, _ = again.communicate(timeout=250)
    assert again.returncode == 0, said
    assert last_record(studies)["resumed"] > 0


def test_while_another_training_runs_it_says_so_or_waits(studies: Path) -> None:
    state = studies.parent / "state"
    state.mkdir()
    with FileLock(state / "training.lock"):
        process = start(studies, "--minutes", "0.05")
        said, _ = process.communicate(timeout=120)
        assert (process.returncode, "another training runs" in said) == (3, True)
        waits = start(studies, "--minutes", "0.05", "--wait", "3")
        assert is_waiting(waits)
        time.sleep(3)
        assert waits.poll() is None
    said, _ = waits.communicate(timeout=250)
    assert waits.returncode == 0, said


def is_waiting(process: "subprocess.Popen[str]") -> bool:
    """Whether the next line that it says is that it waits."""
    assert process.stdout is not None
    return "waiting for its end, 3 minutes at the most" in process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(studies: Path, number: signal.Signals) -> None:
    state = studies.parent / "state"
    state.mkdir()
    with FileLock(state / "training.lock"):
        process = start(studies, "--wait", "3")
        assert is_waiting(process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, "stopped while another training ran" in said) == (4, True)
    assert not Releases(state).records()


def test_where_another_training_was_quicker_it_says_so(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has looked, nobody trained, and then somebody did."""
    state = studies.parent / "state"
    state.mkdir()
    monkeypatch.setattr(retrain, "is_under_way", lambda state: False)
    arguments = ["--studies", str(studies), "--task", "object", "--state", str(state)]
    arguments += ["--conf", "base", "vit_t", "--status-file", str(studies / "status")]
    with FileLock(state / "training.lock"):
        assert cli.main(["retrain", *arguments]) == 3
    assert (studies / "status").read_text() == "3\n"
    assert capsys.readouterr().out.startswith("retrain: a training run is under way already")
    assert not Releases(state).records()


@pytest.mark.parametrize(
    ("option", "value"), [("--minutes", "-1"), ("--minutes", "0"), ("--minutes", "nan"), ("--wait", "-2")]
)
def test_a_time_that_is_none_is_refused(
    studies: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = studies.parent / "state"
    arguments = ["--studies", str(studies), "--task", "object", "--state", str(state), option, value]
    assert cli.main(["retrain", *arguments]) == 2
    said = capsys.readouterr().err
    assert f"{option}: {float(value)} is not accepted; allowed: a number of minutes" in said
    assert not state.exists()


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "1000"])
def test_hours_that_are_none_are_refused(
    studies: Path, hours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--studies", str(studies), "--task", "object", "--state", str(studies / "state")]
    assert cli.main(["retrain", *arguments, "--max-hours", hours]) == 2
    said = f"--max-hours: {float(hours)} is not accepted; allowed: a number of hours above 0 and below 1000"
    assert said in capsys.readouterr().err


def asked_for(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    retrain.add_arguments(parser)
    return parser.parse_args(["--studies", "x", *options])


def test_the_end_that_was_asked_for_counts_from_the_start_of_the_command() -> None:
    begun = datetime(2026, 6, 10, 2, 0, tzinfo=UTC)
    now = begun + timedelta(hours=1)
    assert retrain.request_of(asked_for(), 10, begun, now) == RunRequest("full", "command line", "base", 30.0)
    limited = retrain.request_of(asked_for("--max-hours", "3"), 1000, begun, now)
    assert (limited.until, limited.minutes) == (begun + timedelta(hours=3), pytest.approx(102.0))
    both = retrain.request_of(asked_for("--max-hours", "3", "--minutes", "20"), 1000, begun, now)
    assert (both.until, both.minutes) == (begun + timedelta(hours=3), 20.0)
    with pytest.raises(
        InputError, match=r"--max-hours: 0\.5 is not accepted; allowed: more than what --wait"
    ):
        retrain.request_of(asked_for("--max-hours", "0.5"), 10, begun, now)


def test_with_the_labels_of_the_last_full_training_nothing_is_done(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, final = studies.parent / "state", studies / "labels" / "final"
    labels = {name: file_digest(final / f"{name}.nii.gz") for name in CASES}
    record = {"kind": "full", "decision": "refused", "label_digests": labels, "minutes": 60.0}
    Releases(state).record(record)
    arguments = ["--studies", str(studies), "--task", "object", "--state", str(state), "--if-new"]
    arguments += ["--conf", "base", "vit_t", "--status-file", str(state / "status"), "--minutes", "0.02"]
    assert cli.main(["retrain", *arguments]) == 0
    assert "nothing is to be done" in capsys.readouterr().out
    assert (state / "status").read_text() == "0\n"
    assert cli.main(["retrain", *arguments, "--max-hours", "1e-9"]) == 2, "there is no time left"
    assert (state / "status").read_text() == "2\n", "not what the call before it left"
    (final / "case0.nii.gz").write_bytes((final / "case1.nii.gz").read_bytes())
    assert cli.main(["retrain", *arguments]) == 0
    assert len(Releases(state).records()) == 2, "another label is news"


def test_what_threads_and_trackers_are_to_do_is_said_before_they_are_there() -> None:
    """As the server says it to its children."""
    code = (
        "import atexit, os, sys; sys.path.insert(0, sys.argv[1]); import cli\n"
        "assert 'torch' not in sys.modules\n"
        "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], os.environ['MLFLOW_DISABLE_TELEMETRY']))\n"
        "cli.main(['releases', '--help'])"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "MLFLOW"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(CLI.parent)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.splitlines()[-1] == "PASSIVE true", done.stderr


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def test_a_signal_to_torchrun_stops_it_and_the_status_says_so(studies: Path) -> None:
    status = studies.parent / "status"
    process = start(studies, "--minutes", "30", "--status-file", str(status), launcher=TORCHRUN)
    until_it_makes_steps(studies, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode != 0, "torchrun's own, whatever its workers say"
    assert status.read_text() == "4\n"
    assert last_record(studies)["decision"] == "stopped"
    assert list((studies.parent / "state" / "checkpoints").glob("*.pt"))


def test_under_torchrun_two_processes_train_together(studies: Path) -> None:
    process = start(studies, "--minutes", "0.1", launcher=TORCHRUN)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert last_record(studies)["decision"] in ("published", "refused")
    assert len(Releases(studies.parent / "state").records()) == 1
