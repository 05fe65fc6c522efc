"""What the scheduler's job does; the run itself is tested with the real server."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import schedule

from lib.server import night as night_module
from lib.server.night import Night
from lib.settings import NightlySettings
from lib.training.nightly import NightFile
from lib.training.request import RunRequest

MIDNIGHT = datetime(2026, 6, 10, 2, 0, tzinfo=UTC)


class World:
    """The night, what it started, and what it sees."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.labels, self.records = MIDNIGHT, {"a": "1", "b": "2", "c": "3"}, []
        self.running: dict[str, Any] | None = None
        self.started: list[RunRequest] = []
        self.room = 0
        self.obstacle: str | None = None
        queue: Any = SimpleNamespace(
            records=lambda: self.records, digests=lambda: self.labels, obstacle=lambda: self.obstacle
        )
        monkeypatch.setattr(
            night_module, "start_training", lambda request: self.started.append(request) or {}
        )
        settings = NightlySettings.model_validate({"at": "02:00", "max_hours": 4, "from": "base"})
        self.file = NightFile(folder / "nightly.json")
        self.night = Night(
            settings,
            self.file,
            queue,
            self._make_room,
            lambda: self.running is not None,
            nullcontext(),
            lambda: self.now,
        )

    def _make_room(self) -> None:
        self.room += 1


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_at_its_time_a_full_run_from_the_base_is_started(world: World) -> None:
    assert world.night.look()
    over = MIDNIGHT + timedelta(hours=4)
    assert world.started == [RunRequest("full", "nightly", "base", 10.0, over)]
    assert world.room == 1
    assert world.file.read().starts == 1


def test_what_is_left_of_the_window_bounds_it(world: World) -> None:
    world.labels = {f"case{number}": "1" for number in range(100)}
    world.now = MIDNIGHT.replace(hour=5)
    world.night.look()
    assert world.started[0].minutes == pytest.approx(51.0)
    assert world.started[0].until == MIDNIGHT.replace(hour=6)


def test_a_server_that_comes_up_at_the_end_of_the_window_leaves_it_to_the_next_night(world: World) -> None:
    world.labels = {f"case{number}": "1" for number in range(200)}
    world.now = MIDNIGHT.replace(hour=5, minute=59)
    assert not world.night.look()
    assert (world.started, world.room, world.file.read().starts) == ([], 0, 0)
    world.now = MIDNIGHT.replace(day=11)
    assert world.night.look()


def test_while_another_training_runs_it_waits(world: World) -> None:
    world.running = {"id": "1"}
    assert not world.night.look()
    assert world.file.read().starts == 0, "a night has three starts, and none was made"
    world.running = None
    assert world.night.look()


@pytest.mark.parametrize("hour", [1, 6, 12])
def test_outside_of_the_window_nothing_is_started(world: World, hour: int) -> None:
    world.now = MIDNIGHT.replace(hour=hour)
    assert not world.night.look()
    assert world.started == []


def test_a_run_that_ended_is_not_repeated_and_one_that_crashed_is_a_few_times(world: World) -> None:
    assert [world.night.look() for _ in range(5)] == [True, True, True, False, False]
    world.records.append(
        {"trigger": "nightly", "kind": "full", "decision": "refused", "time": MIDNIGHT.isoformat()}
    )
    world.now = MIDNIGHT.replace(day=11)
    assert world.night.look()


def test_with_the_labels_of_the_last_full_run_the_night_is_free(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.records.append({"kind": "full", "decision": "published", "label_digests": dict(world.labels)})
    with caplog.at_level("INFO"):
        assert not world.night.look()
        assert not world.night.look()
    assert caplog.text.count("no retraining tonight: the labels are those of the last full training") == 1


def test_where_nothing_could_be_published_the_night_is_free(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.obstacle = "label 1 more"
    with caplog.at_level("INFO"):
        assert not world.night.look()
    assert "no retraining tonight: label 1 more" in caplog.text
    world.obstacle = None
    assert not world.night.look(), "it is decided once a night"


def test_however_often_people_come_first_the_night_goes_on(world: World) -> None:
    for _ in range(5):
        assert world.night.look()
        world.night.note_interruption()
    assert [world.night.look() for _ in range(4)] == [True, True, True, False], "crashes do count"


def test_one_that_was_stopped_stays_stopped_this_night(world: World) -> None:
    world.night.look()
    world.night.note_stop()
    assert not world.night.look()
    world.now = MIDNIGHT.replace(day=11)
    assert world.night.look()


def test_the_status_says_when_the_next_one_is(world: World) -> None:
    assert world.night.status() == {
        "next": "2026-06-11T02:00+00:00",
        "window_open": True,
        "max_hours": 4.0,
        "from": "base",
    }


def test_the_job_is_monai_labels_schedulers_and_outlives_a_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "default_scheduler", schedule.Scheduler())
    world.night.schedule()
    (job,) = schedule.default_scheduler.jobs
    world.records = None  # type: ignore[assignment]
    job.run()
    world.records = []
    job.run()
    assert len(world.started) == 1
