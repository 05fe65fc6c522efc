"""What MLflow and TensorBoard read back, and that no failure of theirs reaches the run."""

import logging
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.training import tracking

APP = Path(tracking.__file__).resolve().parents[2]
PARAMS = {
    "kind": "incremental",
    "trigger": "labels",
    "start": "champion",
    "champion": 2,
    "time": "2026-01-01T10:00:00+00:00",
    "settings": {"seed": 0, "nightly": None},
}
NAME = "2026-01-01T10_00_00_00_00-incremental"


def record(decision: str = "published", **more: Any) -> dict[str, Any]:
    def scored(case: str, label: str, first: float) -> dict[str, Any]:
        return {"case_id": case, "label": label, "clicks": [first, 0.75], "automatic": 0.25}

    return {
        "decision": decision,
        "reasons": ["patient7 is suspicious"],
        "version": 3 if decision == "published" else None,
        "label_digests": {"patient7": "ab", "patient8": "cd", "patient9": "ef"},
        "trained": ["patient7", "patient8"],
        "validated": ["patient9"],
        "suspicious": [{"case_id": "patient7", "label": "liver", "dice": 0.1, "typical": 0.9}],
        "scores": {
            "champion": [scored("patient9", "liver", 0.5), scored("patient9", "l/../+", 0.5)],
            "candidate": [scored("patient9", "liver", 0.625)],
        },
        "steps": 40,
        "seconds": {"training": 20.5},
        **more,
    }


def client_of(state: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{state / 'mlflow.db'}")


def runs_of(state: Path) -> list[Run]:
    client = client_of(state)
    experiment = client.get_experiment_by_name("medsa")
    assert experiment is not None
    assert experiment.artifact_location == (state / "mlflow").as_uri()
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def test_a_run_is_read_back_with_mlflow_and_tensorboard(tmp_path: Path) -> None:
    with tracking.run(tmp_path, PARAMS) as tracked:
        for step in (1, 2, 3):
            tracked.metrics(step, {"loss": 1 / step, "l/r b+": 0.5})
        tracked.finish(record())
    (run,) = runs_of(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.info.start_time <= run.info.end_time
    assert run.data.params == {
        "kind": "incremental",
        "trigger": "labels",
        "start": "champion",
        "champion": "2",
        "time": "2026-01-01T10:00:00+00:00",
        "settings.seed": "0",
        "settings.nightly": "None",
    }
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {"decision": "published", "half_way": "no", "version": "3"}
    losses = client_of(tmp_path).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in losses] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    expected = {
        "cases/labels": 3.0,
        "cases/trained": 2.0,
        "cases/version": 3.0,
        "seconds/training": 20.5,
        "dice_before/liver/click_1": 0.5,
        "dice_before/l_..__/automatic": 0.25,
        "dice_after/liver/click_1": 0.625,
        "dice_after/liver/click_2": 0.75,
        "dice_after/liver/automatic": 0.25,
        "l/r_b_": 0.5,
    }
    assert {key: run.data.metrics.get(key) for key in expected} == expected

    curves = EventAccumulator(str(tmp_path / "tensorboard" / NAME)).Reload()
    assert [(event.step, event.value) for event in curves.Scalars("loss")][:2] == [(1, 1.0), (2, 0.5)]
    assert [event.value for event in curves.Scalars("dice_after/liver/click_1")] == [0.625]


def test_no_case_is_named_anywhere(tmp_path: Path) -> None:
    with tracking.run(tmp_path, PARAMS) as tracked:
        tracked.finish(record())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert [path.name for path in files if b"patient" in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("decision", "status"),
    [("published", "FINISHED"), ("refused", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")],
)
def test_the_outcome_is_mlflows_status(tmp_path: Path, decision: str, status: str) -> None:
    outcomes = []
    tracked = tracking.Tracked({"here": lambda: Kept(outcomes)}, time.time)
    tracked.finish(record(decision))
    tracked.close(failed=False)
    ((got, tags),) = outcomes
    assert (got, tags["decision"]) == (status, decision)


class Kept:
    """A sink that keeps how runs ended."""

    def __init__(self, outcomes: list[tuple[str, Any]]) -> None:
        self.outcomes = outcomes

    def point(self, point: tracking.Point) -> None:
        raise AssertionError(point)

    def end(self, end: tracking.End) -> None:
        self.outcomes.append((end.status, end.tags))


def test_what_a_run_raises_goes_through_and_the_next_ends_what_a_kill_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.run(tmp_path, PARAMS):
        raise ZeroDivisionError
    (failed,) = runs_of(tmp_path)
    assert failed.info.status == "FAILED"
    left = client_of(tmp_path).create_run(failed.info.experiment_id, run_name="killed")
    with tracking.run(tmp_path, PARAMS):
        pass
    states = {run.info.run_id: run.info.status for run in runs_of(tmp_path)}
    assert states[left.info.run_id] == "KILLED"
    assert sorted(states.values()) == ["FAILED", "FINISHED", "KILLED"]


def test_a_broken_database_ends_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 1000)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), tracking.run(tmp_path, PARAMS) as tracked:
        tracked.metrics(1, {"loss": 1.0})
        tracked.metrics(2, {"loss": 0.5})
        tracked.finish(record())
    assert time.monotonic() - began < 30  # MLflow itself would try again for minutes
    said = [line for line in caplog.messages if "track this run" in line]
    assert said == ["MLflow does not track this run (file is not a database); the training goes on"]
    curves = EventAccumulator(str(tmp_path / "tensorboard" / NAME)).Reload()
    assert len(curves.Scalars("loss")) == 2


def test_a_database_that_breaks_meanwhile_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.run(tmp_path, PARAMS):
        pass
    with caplog.at_level(logging.WARNING), tracking.run(tmp_path, PARAMS) as tracked:
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("DROP TABLE metrics")
        tracked.metrics(1, {"loss": 1.0})
        tracked.finish(record())
    assert len([line for line in caplog.messages if line.startswith("MLflow does not track")]) == 1


def test_without_the_libraries_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "mlflow.entities", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.WARNING), tracking.run(tmp_path, PARAMS) as tracked:
        tracked.metrics(1, {"loss": 1.0})
        tracked.finish(record())
    assert sorted(line.split()[0] for line in caplog.messages) == ["MLflow", "TensorBoard"]
    assert not (tmp_path / "tensorboard").exists()


def test_the_end_of_a_run_waits_for_a_bounded_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Kept):
        def end(self, end: tracking.End) -> None:
            time.sleep(20)

    tracked = tracking.Tracked({"stuck": lambda: Stuck([])}, time.time)
    began = time.monotonic()
    tracked.close(failed=False, patience_s=0.2)
    assert time.monotonic() - began < 10
    assert "what is not written is lost" in caplog.text


def test_untracked_writes_nothing(tmp_path: Path) -> None:
    with tracking.untracked(tmp_path, PARAMS) as tracked:
        tracked.metrics(1, {"loss": 1.0})
        tracked.finish(record())
    assert list(tmp_path.iterdir()) == []


def test_mlflow_does_not_phone_home_though_it_was_imported_before(tmp_path: Path) -> None:
    program = """
import mlflow
from mlflow.telemetry import get_telemetry_client
before = get_telemetry_client()
from lib.training.tracking import _quiet_mlflow
_quiet_mlflow()
print(before is not None, get_telemetry_client() is None)
"""
    # pytest and CI switch telemetry off by themselves.
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LD_LIBRARY_PATH")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": str(APP)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "True"]


def test_importing_the_module_imports_neither_library() -> None:
    program = "import sys, lib.training.tracking as t; print({'mlflow', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(APP)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
