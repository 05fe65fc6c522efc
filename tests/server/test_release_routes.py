"""The releases over HTTP: listed, shown, rolled back and pruned, with the errors of the other routes."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import FastAPI
from monailabel.config import settings
from starlette.testclient import TestClient

from lib.server.release_routes import release_router
from lib.training.releases import Releases

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    found = Releases(tmp_path / "state")
    for parent in range(3):
        found.publish(
            lambda folder: (folder / "README.md").write_text("card") and None,
            {
                "decision": "published",
                "champion": parent,
                "time": "then",
                "trained": ["a"],
                "loss": float("nan"),
            },
        )
    return found


@pytest.fixture
def client(releases: Releases) -> TestClient:
    server = FastAPI()
    server.router.routes[0:0] = release_router(releases, lambda: NOW).routes
    return TestClient(server)


def test_the_list(client: TestClient) -> None:
    found = client.get("/medsa/releases").json()
    assert (found["serving"], found["rollback_to"], found["versions"]) == (3, 2, [0, 1, 2, 3])
    assert [record["version"] for record in found["records"]] == [1, 2, 3]
    assert found["records"][0]["loss"] is None  # NaN is no JSON


def test_one_version(client: TestClient) -> None:
    found = client.get("/medsa/releases/3").json()
    assert (found["serving"], found["weights"], found["run"]["trained"]) == (True, "kept", ["a"])
    assert "adapter_config.json" in found["problem"]
    assert client.get("/medsa/releases/0").json()["weights"] == "none"


@pytest.mark.parametrize("version", ["9", "-1", "x", "1.0", "٣", "1" * 30])
def test_a_version_that_there_is_not(client: TestClient, version: str) -> None:
    answer = client.get(f"/medsa/releases/{version}")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("version: ")


@pytest.mark.parametrize("path", ["rollback", "prune"])
def test_a_form_of_another_sites_page_changes_nothing(
    client: TestClient, releases: Releases, path: str
) -> None:
    answer = client.post(f"/medsa/releases/{path}", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, releases.champion_version()) == (403, 3)


def test_rolling_back(client: TestClient, releases: Releases) -> None:
    assert client.post("/medsa/releases/rollback").json() == {
        "serving": 2,
        "rollback_to": 1,
        "versions": [0, 1, 2, 3],
    }
    assert client.post("/medsa/releases/rollback", json={"version": 3, "client_id": "ann"}).status_code == 200
    assert releases.records()[-1] == {
        "decision": "rolled back",
        "time": "2026-01-02T03:04:05+00:00",
        "champion": 2,
        "version": 3,
        "by": "ann",
    }
    client.post("/medsa/releases/rollback", json={"version": 0})
    answer = client.post("/medsa/releases/rollback", json={})
    assert (answer.status_code, "the base serves" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [({"version": 9}, 404), ({"version": "2"}, 422), ({"version": True}, 422), ([2], 422), (2, 422)],
)
def test_what_is_no_version_rolls_nothing_back(
    client: TestClient, releases: Releases, body: object, status: int
) -> None:
    answer = client.post("/medsa/releases/rollback", json=body)
    assert (answer.status_code, "allowed: " in answer.json()["detail"]) == (status, True)
    assert releases.champion_version() == 3


def test_pruning(client: TestClient, releases: Releases) -> None:
    found = client.post("/medsa/releases/prune", json={"keep": 1}).json()
    assert found == {"pruned": [1], "serving": 3, "rollback_to": 2, "versions": [0, 2, 3]}
    assert client.get("/medsa/releases/1").json()["pruned"] == "2026-01-02T03:04:05+00:00"
    answer = client.post("/medsa/releases/rollback", json={"version": 1})
    assert (answer.status_code, "were pruned on 2026-01-02" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize("body", [None, {}, {"keep": 0}, {"keep": "2"}, {"keep": True}, {"keep": 1.5}])
def test_pruning_needs_a_number(client: TestClient, releases: Releases, body: object) -> None:
    answer = client.post("/medsa/releases/prune", json=body)
    assert (answer.status_code, "keep: " in answer.json()["detail"]) == (422, True)
    assert releases.versions() == [0, 1, 2, 3]


def test_with_accounts_reading_needs_one_and_changing_an_administrators(
    client: TestClient, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monailabel.endpoints.user import auth

    roles: list[str] = []
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "from_token", lambda token: auth.User(username="ann", roles=roles))
    assert client.get("/medsa/releases").status_code == 403
    roles.append(settings.MONAI_LABEL_AUTH_ROLE_USER)
    assert client.get("/medsa/releases").status_code == 200
    assert client.post("/medsa/releases/rollback").status_code == 403
    assert client.post("/medsa/releases/prune", json={"keep": 1}).status_code == 403
    assert (releases.champion_version(), releases.versions()) == (3, [0, 1, 2, 3])
    roles.append(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)
    assert client.post("/medsa/releases/rollback").status_code == 200
    assert releases.records()[-1]["by"] == "ann"
