"""What the training routes refuse before anything starts."""

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from monailabel.endpoints import train as train_endpoint
from starlette.testclient import TestClient

from lib.server.task_routes import task_router


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """`run_sync` of the trainings that were started."""
    found: list[bool] = []
    monkeypatch.setattr(train_endpoint, "run", lambda params, run_sync: found.append(run_sync))
    monkeypatch.setattr(
        train_endpoint, "run_model", lambda model, params, run_sync, enqueue: found.append(run_sync)
    )
    return found


@pytest.fixture
def client() -> TestClient:
    store = SimpleNamespace(get_labeled_images=lambda: ["a", "b"])
    app: Any = SimpleNamespace(datastore=lambda: store, info=lambda: {"trainers": {"medsa": {}}})
    unused: Any = None
    server = FastAPI()
    server.router.routes[0:0] = task_router(app, unused, unused).routes
    return TestClient(server)


@pytest.mark.parametrize("path", ["/train/medsa", "/train/"])
def test_training_inside_the_server_is_refused(client: TestClient, started: list[bool], path: str) -> None:
    answer = client.post(f"{path}?run_sync=true")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("run_sync: True is not accepted; allowed: false")
    assert started == []
    assert client.post(path).status_code == 200
    assert started == [False]
