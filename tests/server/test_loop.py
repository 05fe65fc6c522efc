"""What the housekeeping starts; starting itself is tested with the real server."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from lib.errors import AlreadyTrainingError, TrainingError
from lib.server import loop
from lib.server.loop import Action, Housekeeping, Situation, next_action, training_is_due
from lib.settings import TrainingSettings
from lib.training.request import RunRequest

IDLE = Situation(
    training=False,
    scoring=False,
    auto_train=True,
    train_after=5,
    obstacle=None,
    pending=0,
    may_start=True,
    unscored=(),
    tried=(),
)


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({}, None),
        ({"pending": 4}, None),
        ({"pending": 5}, "train"),
        ({"pending": 9, "scoring": True}, "train"),
        ({"pending": 5, "training": True}, None),
        ({"pending": 5, "auto_train": False}, None),
        ({"pending": 5, "may_start": False}, None),
        ({"unscored": ("a",)}, "score"),
        ({"unscored": ("a",), "pending": 5}, "train"),
        ({"unscored": ("a",), "pending": 5, "may_start": False}, "score"),
        ({"unscored": ("a",), "training": True}, None),
        ({"unscored": ("a",), "scoring": True}, None),
        ({"unscored": ("a",), "tried": ("a",)}, None),
        ({"unscored": ("a",), "tried": ("a", "b")}, "score"),
    ],
)
def test_what_is_started(change: dict[str, object], action: Action | None) -> None:
    assert next_action(replace(IDLE, **change)) == action


WAITING = replace(IDLE, pending=1, idle_after=20.0)


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({"idle_minutes": 19.9}, None),
        ({"idle_minutes": 20.0}, "train"),
        ({"idle_minutes": 20.0, "pending": 0}, None),
        ({"idle_minutes": 20.0, "idle_after": 0.0}, None),
        ({"idle_minutes": 20.0, "auto_train": False}, None),
        ({"idle_minutes": 20.0, "may_start": False}, None),
        ({"idle_minutes": 20.0, "obstacle": "label 1 more"}, None),
        ({"idle_minutes": 20.0, "training": True}, None),
        ({"idle_minutes": -300.0}, "train"),
    ],
)
def test_few_labels_are_learnt_when_nobody_saves_another(
    change: dict[str, object], action: Action | None
) -> None:
    assert next_action(replace(WAITING, **change)) == action


def test_due_says_what_will_be_started() -> None:
    assert training_is_due(replace(IDLE, pending=5))
    assert not training_is_due(replace(IDLE, pending=4))
    assert not training_is_due(replace(IDLE, pending=5, may_start=False))


@pytest.mark.parametrize(("obstacle", "action"), [("label 1 more", None), (None, "train")])
def test_labels_that_nothing_could_be_published_from_start_nothing(
    obstacle: str | None, action: str | None
) -> None:
    assert next_action(replace(IDLE, train_after=1, pending=1, obstacle=obstacle)) == action


def test_a_person_hears_of_it_before_a_training_is_started(server: "Server") -> None:
    server.housekeeping.check_labels()
    server.obstacle = "label 1 more"
    with pytest.raises(TrainingError, match="label 1 more"):
        server.housekeeping.check_labels()


class Server:
    """Housekeeping over labels and trainings that a test moves; `tasks` is what MONAI Label's bookkeeping says."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pending = {"a": "1", "b": "2", "c": "3"}
        self.started: list[RunRequest] = []
        self.tasks: list[dict[str, Any]] = []
        self.stopped = 0
        self.obstacle: str | None = None
        parts: Any = SimpleNamespace(
            state=state,
            settings=SimpleNamespace(training=TrainingSettings(train_after=2)),
            serving=SimpleNamespace(current=lambda: None),
        )
        queue: Any = SimpleNamespace(
            pending=lambda: dict(self.pending),
            obstacle=lambda: self.obstacle,
            unscored=tuple,
            newest=lambda cases: None,
        )
        monkeypatch.setattr(loop, "is_active", lambda method: method == "train" and bool(self.tasks))
        monkeypatch.setattr(loop, "running_training", lambda: self.tasks[0] if self.tasks else None)
        monkeypatch.setattr(loop, "start_training", self._start)
        monkeypatch.setattr(loop, "stop_training", self._stop)
        self.housekeeping = Housekeeping(parts, queue)

    def _start(self, request: RunRequest) -> dict[str, Any]:
        self.started.append(request)
        self.tasks = [{"id": "1", "status": "RUNNING", "request": request.to_json()}]
        return self.tasks[0]

    def _stop(self) -> dict[str, Any] | None:
        self.stopped += 1
        self.tasks, stopped = [], self.tasks
        return stopped[0] if stopped else None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(tmp_path, monkeypatch)


def test_labels_whose_training_fails_twice_wait_for_another(server: Server) -> None:
    for _ in range(4):
        server.housekeeping.tick()
        server.tasks = []
    assert len(server.started) == 2
    server.pending["d"] = "4"
    assert server.housekeeping.tick() == "train"


def test_a_training_that_did_its_work_is_no_failure(server: Server) -> None:
    queue = dict(server.pending)
    server.housekeeping.tick()
    server.tasks, server.pending = [], {}
    server.housekeeping.tick()
    server.pending = queue
    assert [server.housekeeping.tick(), server.housekeeping.attempts.may_start(queue)] == ["train", True]


def test_restarts_of_the_server_are_no_failures(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        again = Server(tmp_path, monkeypatch)
        assert again.housekeeping.tick() == "train"


def test_while_another_program_trains_nothing_is_started_or_counted(server: Server, tmp_path: Path) -> None:
    with FileLock(tmp_path / "training.lock"):
        assert [server.housekeeping.tick() for _ in range(3)] == [None, None, None]
        with (
            pytest.raises(AlreadyTrainingError, match="another program trains"),
            server.housekeeping.for_a_person(),
        ):
            pass
    assert server.housekeeping.tick() == "train"


def test_a_person_takes_the_place_and_the_labels_are_not_given_up(server: Server) -> None:
    server.housekeeping.tick()
    with server.housekeeping.for_a_person():
        assert server.stopped == 1
        server.tasks = [{"id": "2", "status": "RUNNING", "request": {"trigger": "person"}}]
    assert server.housekeeping.tick() is None
    server.tasks = []
    assert server.housekeeping.tick() == "train"
    assert server.housekeeping.attempts.may_start(server.pending)


@pytest.mark.parametrize(("trigger", "times"), [("nightly", 1), ("labels", 0)])
def test_what_a_person_takes_the_place_of_is_no_failed_start_of_the_night(
    server: Server, trigger: str, times: int
) -> None:
    interrupted: list[bool] = []
    server.housekeeping.night = SimpleNamespace(note_interruption=lambda: interrupted.append(True))  # type: ignore[assignment]
    server.tasks = [{"id": "1", "status": "RUNNING", "request": {"trigger": trigger}}]
    with server.housekeeping.for_a_person():
        assert (server.stopped, len(interrupted)) == (1, times)


def test_however_often_people_come_first_new_labels_are_not_given_up(server: Server) -> None:
    for _ in range(10):
        assert server.housekeeping.tick() == "train"
        with server.housekeeping.for_a_person():
            pass


def test_a_persons_own_training_is_not_stopped_for_another_person(server: Server) -> None:
    server.tasks = [{"id": "2", "status": "RUNNING", "request": {"trigger": "person"}}]
    with server.housekeeping.for_a_person():
        assert server.stopped == 0


def test_a_stop_where_nothing_runs_gives_nothing_up(server: Server) -> None:
    server.housekeeping.note_stop()
    assert server.housekeeping.tick() == "train"
    server.housekeeping.note_stop()
    server.tasks = []
    assert server.housekeeping.tick() is None, "that one was stopped by somebody"


def test_the_labels_of_a_night_that_was_stopped_start_nothing_either(server: Server) -> None:
    stopped: list[bool] = []
    server.housekeeping.night = SimpleNamespace(note_stop=lambda: stopped.append(True))  # type: ignore[assignment]
    server.tasks = [{"id": "1", "status": "RUNNING", "request": {"trigger": "nightly"}}]
    server.housekeeping.note_stop()
    server.tasks = []
    assert stopped == [True]
    assert server.housekeeping.tick() is None
    server.pending["d"] = "4"
    assert server.housekeeping.tick() == "train"
