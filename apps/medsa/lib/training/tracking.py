"""Curves and figures of training runs for MLflow and TensorBoard. It may fail in any way and never ends a run.

    state/mlflow.db   one MLflow run per training, in sqlite; artifacts below state/mlflow
    state/tensorboard/TIME-KIND   event files

Both libraries take seconds to import and are absent on a bare GPU machine, so they are imported when a run begins, in a
thread of its own that does all the writing. The run puts what it has into a queue, which the thread alone empties, and
waits for it at its end only, for a bounded time. Only the process that holds `training.lock` writes here.

What is written names no case: these files are made to be shown around. MLflow's telemetry is switched off.
"""

import logging
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lib.training.account import Entry, explain

log = logging.getLogger(__name__)

DATABASE, ARTIFACTS, CURVES = "mlflow.db", "mlflow", "tensorboard"
EXPERIMENT = "medsa"
PATIENCE_S = 60.0  # how long the end of a run waits for what is not yet written
MLFLOW_VALUE = 500  # characters of a parameter that every backend of MLflow takes
STATUS = {"failed": "FAILED", "stopped": "KILLED"}
Clock = Callable[[], float]


@dataclass(frozen=True)
class Point:
    """Values of one step, at `ms` milliseconds since 1970."""

    step: int
    ms: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class End:
    """How a run ended: MLflow's status, and what its record says without naming a case."""

    status: str
    ms: int
    tags: Mapping[str, str]
    figures: Mapping[str, float]


class Sink(Protocol):
    """Where a run is written to."""

    def point(self, point: Point) -> None:
        """Adds to the curves."""

    def end(self, end: End) -> None:
        """Writes the outcome, and that nothing more comes."""


class Tracked:
    """The run that is tracked. `metrics` and `finish` return at once and raise nothing."""

    def __init__(self, sinks: Mapping[str, Callable[[], Sink]], clock: Clock) -> None:
        self._clock = clock
        self._queue: queue.SimpleQueue[Point | End] = queue.SimpleQueue()
        self._outcome = End("FINISHED", 0, {}, {})
        self._thread: threading.Thread | None = None
        if sinks:
            guarded = [_Guarded(name, begin) for name, begin in sinks.items()]
            self._thread = threading.Thread(
                target=self._work, args=(guarded,), name="medsa-tracking", daemon=True
            )
            self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Adds `values` by name to the curves at `step`; a slash in a name groups curves."""
        named = {"/".join(map(_plain, name.split("/"))): value for name, value in values.items()}
        self._queue.put(Point(step, self._now_ms(), named))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Notes the outcome; `record` is that of the run, as it goes into `runs.jsonl`."""
        entry = explain(record)
        self._outcome = End(STATUS.get(entry.decision, "FINISHED"), 0, _tags(entry), _figures(entry))

    def close(self, *, failed: bool, patience_s: float = PATIENCE_S) -> None:
        """Waits until all is written, for `patience_s` at the most."""
        if self._thread is None:
            return
        outcome = self._outcome
        status = "FAILED" if failed else outcome.status
        self._queue.put(End(status, self._now_ms(), outcome.tags, outcome.figures))
        self._thread.join(patience_s)
        if self._thread.is_alive():
            log.warning("tracking is not done after %g s; what is not written is lost", patience_s)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _work(self, sinks: "list[_Guarded]") -> None:
        for sink in sinks:
            sink.begin()
        while True:
            item = self._queue.get()
            for sink in sinks:
                sink.take(item)
            if isinstance(item, End):
                return


@contextmanager
def run(
    state: Path, params: Mapping[str, Any], clock: Clock = time.time, patience_s: float = PATIENCE_S
) -> Iterator[Tracked]:
    """Tracks one training run under the state folder, as long as the block lasts.

    `params` are as in the record (kind, trigger, start, champion, time), and beside them whatever else was set; a
    mapping in it is spread over names with dots. `clock` gives seconds since 1970. What the block raises goes through,
    and marks the run as failed.
    """
    flat, began_ms = _flat(params), int(clock() * 1000)
    name = f"{flat.get('time', 'run')}-{flat.get('kind', 'training')}"
    tracked = Tracked(
        {
            "TensorBoard": lambda: _TensorBoard(state / CURVES / _plain(name)),
            "MLflow": lambda: _Mlflow(state, name, flat, began_ms),
        },
        clock,
    )
    try:
        yield tracked
    except BaseException:
        tracked.close(failed=True, patience_s=patience_s)
        raise
    tracked.close(failed=False, patience_s=patience_s)


@contextmanager
def untracked(state: Path, params: Mapping[str, Any]) -> Iterator[Tracked]:
    """In place of `run`: writes nothing."""
    del state, params
    yield Tracked({}, time.time)


Track = Callable[[Path, Mapping[str, Any]], AbstractContextManager[Tracked]]


class _Guarded:
    """A sink that is dropped, with one line in the log, at its first failure."""

    def __init__(self, name: str, begin: Callable[[], Sink]) -> None:
        self._name, self._begin = name, begin
        self._sink: Sink | None = None

    def begin(self) -> None:
        def begin() -> None:
            self._sink = self._begin()

        self._try(begin)

    def take(self, item: Point | End) -> None:
        sink = self._sink
        if sink is not None:
            self._try(lambda: sink.end(item) if isinstance(item, End) else sink.point(item))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 (two libraries, a database and a disk: no failure of theirs may end a run)
            self._sink = None
            reason = str(error).partition("\n")[0] or type(error).__name__
            log.warning("%s does not track this run (%s); the training goes on", self._name, reason)


class _TensorBoard:
    """Event files in `folder`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=5)
        self._step = 0

    def point(self, point: Point) -> None:
        self._step = max(self._step, point.step)
        self._write(point.values, point.step, point.ms)

    def end(self, end: End) -> None:
        self._write(end.figures, self._step, end.ms)
        self._writer.close()

    def _write(self, values: Mapping[str, float], step: int, ms: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=ms / 1000)


class _Mlflow:
    """A run in the database under `state`."""

    def __init__(self, state: Path, name: str, params: Mapping[str, str], ms: int) -> None:
        _check_database(state / DATABASE)
        self._entities, client = _quiet_mlflow()
        self._client = client(tracking_uri=f"sqlite:///{(state / DATABASE).resolve()}")
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = (state / ARTIFACTS).resolve().as_uri()
            experiment_id = self._client.create_experiment(EXPERIMENT, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        self._end_orphans(experiment_id)
        self._run = self._client.create_run(experiment_id, start_time=ms, run_name=name).info.run_id
        self._step = 0
        listed = [self._entities.Param(_plain(key), value[:MLFLOW_VALUE]) for key, value in params.items()]
        self._client.log_batch(self._run, params=listed)

    def point(self, point: Point) -> None:
        self._step = max(self._step, point.step)
        self._write(point.values, point.step, point.ms)

    def end(self, end: End) -> None:
        self._write(end.figures, self._step, end.ms)
        for key, value in end.tags.items():
            self._client.set_tag(self._run, key, value)
        self._client.set_terminated(self._run, end.status, end.ms)

    def _write(self, values: Mapping[str, float], step: int, ms: int) -> None:
        metrics = [self._entities.Metric(name, value, ms, step) for name, value in values.items()]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def _end_orphans(self, experiment_id: str) -> None:
        # A killed process could not say that it ended; the training lock is ours, so no other run is under way.
        for found in self._client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
            self._client.set_terminated(found.info.run_id, "KILLED")


def _quiet_mlflow() -> tuple[Any, Any]:
    """MLflow's entities and its client, with telemetry off; raises ImportError where it is not installed."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow.entities
    from mlflow.telemetry import set_telemetry_client
    from mlflow.tracking import MlflowClient

    # MONAI imports MLflow when it finds it, maybe before telemetry was off; asked again, MLflow drops its client.
    set_telemetry_client()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow.entities, MlflowClient


def _check_database(path: Path) -> None:
    """Raises sqlite3.Error for a file that is no database: MLflow tries such a one again for minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=5)) as database:
        database.execute("PRAGMA schema_version").fetchone()
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _tags(entry: Entry) -> dict[str, str]:
    # Without the reasons, notes and suspicious cases: they name cases.
    tags = {"decision": entry.decision, "half_way": "yes" if entry.half_way else "no"}
    if entry.method:
        tags["method"] = entry.method
    return tags if entry.version is None else {**tags, "version": str(entry.version)}


def _figures(entry: Entry) -> dict[str, float]:
    """Counts, seconds, and Dice of each label and click before and after."""
    counts = {
        "labels": entry.labels,
        "trained": len(entry.trained),
        "validated": len(entry.validated),
        "skipped": len(entry.skipped),
        "suspicious": len(entry.suspicious),
        "steps": entry.steps,
        "version": entry.version,
    }
    found = {f"cases/{name}": float(value) for name, value in counts.items() if value is not None}
    found |= {f"seconds/{_plain(stage)}": value for stage, value in entry.seconds.items()}
    for when, rows in (("before", entry.before), ("after", entry.after)):
        for figures in rows:
            place = f"dice_{when}/{_plain(figures.label)}"
            found |= {f"{place}/click_{count}": value for count, value in enumerate(figures.clicks, 1)}
            found |= {} if figures.automatic is None else {f"{place}/automatic": figures.automatic}
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _plain(name: str) -> str:
    """A name that MLflow, TensorBoard and a file system take: letters, digits, _ and -, and inner dots."""
    return re.sub(r"[^\w.-]", "_", name).strip(".") or "_"
