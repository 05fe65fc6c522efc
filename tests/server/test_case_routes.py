"""What a viewer is told of a case and its labels."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib.activelearning.leases import Leases
from lib.datastore.local import MedsaDatastore
from lib.scoring.scores import CaseScore, ScoreFolder
from lib.server.case_routes import case_router
from lib.server.datastore_routes import datastore_router

LABELS = {"liver": 1, "kidney": 7}
SHAPE = (5, 4, 3)


def client_of(folder: Path, image_name: str, shape: tuple[int, int, int]) -> TestClient:
    """A client of a store in `folder` with one empty image."""
    image = nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.diag([1.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, folder / f"{image_name}.nii.gz")
    store = MedsaDatastore(str(folder), LABELS, lambda: 2)
    app = SimpleNamespace(datastore=lambda: store, on_save_label=lambda image, label: None)
    server = FastAPI()
    leases, scores = Leases(folder / "leases.json", 60), ScoreFolder(folder / ".scores")
    cases = case_router(app, LABELS, leases, scores, lambda: 100.0)
    server.router.routes[0:0] = [*cases.routes, *datastore_router(app).routes]
    return TestClient(server, raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return client_of(tmp_path, "case", SHAPE)


@pytest.fixture
def save(client: TestClient) -> Callable[..., Any]:
    def put(values: np.ndarray, client_id: str, **params: Any) -> Any:
        info = [{"name": "kidney", "idx": 3}]
        said = {"label_info": info, "client_id": client_id, **params}
        files = {
            "params": (None, json.dumps(said)),
            "label": ("label.bin", values.astype(np.uint8).tobytes(order="F")),
        }
        return client.put("/datastore/label", params={"image": "case"}, files=files)

    return put


@pytest.fixture
def third() -> np.ndarray:
    """A label map of which only the third segment has voxels."""
    values = np.zeros(SHAPE, np.uint8)
    values[1, 2, 0] = values[4, 0, 2] = 3
    return values


def test_a_case_without_a_label_has_none(client: TestClient) -> None:
    assert client.get("/medsa/cases/case").json() == {"image": "case", "labels": []}
    answer = client.get("/medsa/cases/case/label")
    assert answer.status_code == 404
    assert "label: 'case'" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/medsa/cases/nope", "/medsa/cases/nope/label"])
def test_an_unknown_case_is_named(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "image: 'nope'" in answer.json()["detail"]


def test_the_current_label_comes_back_as_it_was_saved(
    client: TestClient, save: Callable[..., Any], third: np.ndarray
) -> None:
    assert save(third, "ann").json() == {
        "image": "case",
        "label": "case",
        "version": 1,
        "others": [],
        "pacs": None,
    }
    answer = client.get("/medsa/cases/case/label")
    assert answer.headers["medsa-label-version"] == "1"
    found = np.frombuffer(answer.content, np.uint8).reshape(SHAPE, order="F")
    assert np.array_equal(found, np.where(third == 3, 7, 0))


def test_who_submits_is_told_of_others_and_all_versions_are_kept(
    client: TestClient, save: Callable[..., Any], third: np.ndarray
) -> None:
    save(third, "ann", seen_version=0)
    save(np.roll(third, 1), "bob", seen_version=1)
    told = save(np.roll(third, 2), "ann", seen_version=1).json()
    assert told["version"] == 3
    assert [(one["version"], one["author"]) for one in told["others"]] == [(2, "bob")]
    saved = client.get("/medsa/cases/case").json()["labels"]
    assert [(one["version"], one["author"], one["adapter_version"]) for one in saved] == [
        (1, "ann", 2),
        (2, "bob", 2),
        (3, "ann", 2),
    ]


def test_a_wrong_seen_version_saves_nothing(
    client: TestClient, save: Callable[..., Any], third: np.ndarray
) -> None:
    answer = save(third, "ann", seen_version="newest")
    assert answer.status_code == 422
    assert "seen_version: 'newest'" in answer.json()["detail"]
    assert client.get("/medsa/cases/case").json()["labels"] == []


def test_a_case_is_given_back_by_whom_it_is_offered_to(client: TestClient, tmp_path: Path) -> None:
    Leases(tmp_path / "leases.json", 60).offer("ann", lambda: ["case"], 99.0)
    refused = client.post("/medsa/cases/case/give-back", json={"client_id": "bob"})
    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "client_id: 'bob' is not accepted; allowed: the client to whom case is offered",
    )
    assert client.post("/medsa/cases/other/give-back", json={"client_id": "ann"}).status_code == 404
    given = client.post("/medsa/cases/case/give-back", json={"client_id": "ann"})
    assert given.json() == {"image": "case", "client_id": "ann"}
    assert Leases(tmp_path / "leases.json", 60).offer("bob", lambda: ["case"], 101.0) == "case"


def test_another_sites_page_cannot_give_a_case_back(client: TestClient) -> None:
    headers = {"content-type": "text/plain", "origin": "http://elsewhere"}
    assert client.post("/medsa/cases/case/give-back", headers=headers).status_code == 403


def test_the_picture_of_a_case(client: TestClient, tmp_path: Path) -> None:
    absent = client.get("/medsa/cases/case/picture.png")
    assert (absent.status_code, "a case that was scored" in absent.json()["detail"]) == (404, True)
    assert client.get("/medsa/cases/other/picture.png").status_code == 404
    scores, file = ScoreFolder(tmp_path / ".scores"), tmp_path / "case.nii.gz"
    scores.append("case", CaseScore("vit_t", 1, image=f"{file.stat().st_size} {file.stat().st_mtime_ns}"))
    picture = scores.picture("case")
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"png")
    found = client.get("/medsa/cases/case/picture.png")
    assert (found.content, found.headers["content-type"]) == (b"png", "image/png")
    file.write_bytes(file.read_bytes() + b" ")
    assert client.get("/medsa/cases/case/picture.png").status_code == 404, "it shows another file's image"


@pytest.mark.server  # a gigabyte of memory, and seconds
def test_a_label_of_a_hundred_megabytes_comes_back_as_it_was(tmp_path: Path) -> None:
    shape = (1024, 1024, 96)
    client = client_of(tmp_path, "large", shape)
    values = np.zeros(shape, np.uint8)
    values[100:900, 200:700, 3:90] = 7
    values[0, 0, 0] = values[-1, -1, -1] = 1
    said = {"label_info": [{"name": "liver", "idx": 1}, {"name": "kidney", "idx": 7}]}
    body = values.tobytes(order="F")
    assert len(body) > 100_000_000
    files = {"params": (None, json.dumps(said)), "label": ("label.bin", body)}
    assert client.put("/datastore/label", params={"image": "large"}, files=files).status_code == 200
    assert client.get("/medsa/cases/large/label").content == body
