"""What the training routes refuse before anything starts."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from filelock import FileLock
from monailabel.endpoints import train as train_endpoint
from starlette.testclient import TestClient

from lib.errors import TrainingError
from lib.files import write_json
from lib.server.task_routes import task_router
from lib.training.request import RunRequest


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """`run_sync` of the trainings that were started."""
    found: list[bool] = []
    monkeypatch.setattr(
        train_endpoint, "run_model", lambda model, params, run_sync, enqueue: found.append(run_sync)
    )
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the trainings that were started were asked for."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        train_endpoint, "run_model", lambda model, params, run_sync, enqueue: found.append(params)
    )
    return found


@pytest.fixture
def labelled() -> list[str]:
    return ["a", "b", "c"]


@pytest.fixture
def client(tmp_path: Path, labelled: list[str]) -> TestClient:
    store = SimpleNamespace(get_labeled_images=lambda: labelled)
    housekeeping: Any = SimpleNamespace(
        for_a_person=nullcontext, note_stop=lambda: None, check_labels=lambda: check(labelled)
    )
    app: Any = SimpleNamespace(datastore=lambda: store, info=lambda: {"trainers": {"medsa": {}}})
    settings = SimpleNamespace(training=SimpleNamespace(nightly=None))
    parts: Any = SimpleNamespace(state=tmp_path, settings=settings)
    server = FastAPI()
    server.router.routes[0:0] = task_router(app, parts, housekeeping).routes
    return TestClient(server)


def check(labelled: list[str]) -> None:
    if "unjudged" in labelled:
        raise TrainingError("2 of at least 3 patients or cases to compare by")


@pytest.mark.parametrize("path", ["/train/medsa", "/train/", "/train/medsa?enqueue=true"])
def test_labels_that_nothing_could_be_published_from_are_refused_at_once(
    client: TestClient, asked: list[Any], labelled: list[str], path: str
) -> None:
    labelled.append("unjudged")
    answer = client.post(path)
    assert (answer.status_code, asked) == (409, [])
    assert "2 of at least 3 patients" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/train/medsa", "/train/"])
def test_training_inside_the_server_is_refused(client: TestClient, started: list[bool], path: str) -> None:
    answer = client.post(f"{path}?run_sync=true")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("run_sync: True is not accepted; allowed: false")
    assert started == []
    assert client.post(path).status_code == 200
    assert started == [False]


@pytest.mark.parametrize("path", ["/train/medsa", "/train/"])
def test_what_a_person_asks_for_is_passed_on_as_a_persons(
    client: TestClient, asked: list[dict[str, Any]], path: str
) -> None:
    body = {"kind": "full", "start": "base", "minutes": 30, "trigger": "nightly"}
    assert client.post(path, json=body).status_code == 200
    assert client.post(path).status_code == 200
    full, plain = asked
    assert {key: full[key] for key in ("kind", "start", "minutes", "trigger")} == {
        **body,
        "trigger": "person",
    }
    assert (plain["kind"], plain["start"], plain["trigger"]) == ("incremental", "champion", "person")


def test_a_full_run_takes_as_long_as_a_nights_where_nothing_else_is_said(
    client: TestClient, asked: list[dict[str, Any]], labelled: list[str]
) -> None:
    assert client.post("/train/medsa", json={"kind": "full"}).status_code == 200
    assert client.post("/train/medsa", json={"kind": "incremental"}).status_code == 200
    full, short = asked
    assert (full["start"], full["minutes"]) == ("base", 10.0)
    labelled += [f"case{number}" for number in range(5000)]
    assert client.post("/train/medsa", json={"kind": "full"}).status_code == 200
    assert asked[-1]["minutes"] == pytest.approx(0.85 * 4 * 60)
    assert (short["start"], short["minutes"]) == ("champion", None)


def test_viewers_that_ask_for_the_model_by_name_are_understood(
    client: TestClient, asked: list[dict[str, Any]]
) -> None:
    assert client.post("/train/", json={"medsa": {"minutes": 2}}).status_code == 200
    assert asked[0]["minutes"] == 2


def test_an_entry_for_the_model_that_is_none_is_refused(client: TestClient, asked: list[Any]) -> None:
    answer = client.post("/train/", json={"medsa": 3})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "medsa: 3 is not accepted; allowed: a JSON object"
    assert asked == []


@pytest.mark.parametrize("path", ["/train/medsa", "/train/"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://evil"}, 403),
        ({"Origin": "http://viewer", "Content-Type": "application/json"}, 200),
    ],
)
def test_a_form_of_another_sites_page_starts_nothing(
    client: TestClient, asked: list[Any], path: str, headers: dict[str, str], status: int
) -> None:
    assert client.post(path, headers=headers).status_code == status
    assert len(asked) == (status == 200)


@pytest.mark.parametrize("path", ["/train/medsa", "/train/"])
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("kind", "whole", "one of incremental, full"),
        ("start", "v7", "one of champion, base"),
        ("until", "2026-01-01T06:00:00+01:00", "a moment to come"),
        ("minutes", -1, "a number of minutes above 0 and below 10000"),
        ("minutes", 20000, "a number of minutes above 0 and below 10000"),
        ("minutes", "long", "a number of minutes above 0 and below 10000"),
        ("gpus", 1, 'a text: "all", or numbers of GPUs with commas, as "0" or "0,1"'),
        ("gpus", [0, 1], 'a text: "all", or numbers of GPUs with commas, as "0" or "0,1"'),
        ("gpus", "0;rm", 'a text: "all", or numbers of GPUs with commas, as "0" or "0,1"'),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_stopped_or_started(
    client: TestClient, asked: list[Any], path: str, field: str, value: Any, allowed: str
) -> None:
    answer = client.post(path, json={field: value})
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{field}: {value!r} is not accepted; allowed: {allowed}"
    assert asked == []


@pytest.mark.parametrize("path", ["/train/medsa", "/train/"])
def test_nothing_else_is_passed_on(client: TestClient, asked: list[dict[str, Any]], path: str) -> None:
    """What MONAI Label's executor cannot start a process with, it would keep as about to begin."""
    body = {"gpus": "0,1", "bundle_path": "/elsewhere", "name": "x" * 200_000, "max_epochs": 50}
    assert client.post(path, json=body).status_code == 200
    assert asked == [{**RunRequest().to_json(), "gpus": "0,1"}]


def test_a_training_of_another_program_is_not_called_stopped(client: TestClient, tmp_path: Path) -> None:
    write_json(tmp_path / "progress.json", {"pid": 4321})
    with FileLock(tmp_path / "training.lock"):
        answer = client.delete("/train/")
    assert answer.status_code == 409
    assert "another program's (process 4321)" in answer.json()["detail"]


def test_stopping_where_nothing_runs_is_no_error(client: TestClient) -> None:
    answer = client.delete("/train/")
    assert (answer.status_code, answer.json()) == (200, None)
