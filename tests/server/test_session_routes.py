"""Sessions: one readable image each, opened, asked for and deleted by id."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi import FastAPI
from monailabel.utils.sessions import Sessions
from starlette.testclient import TestClient

from lib.server.session_routes import session_router

Put = Callable[..., Any]


@pytest.fixture
def app(tmp_path: Path) -> Any:
    sessions, opened = Sessions(str(tmp_path / "sessions")), []
    return SimpleNamespace(sessions=lambda: sessions, opened=opened.append, found=opened)


def client_of(app: Any) -> TestClient:
    server = FastAPI()
    server.router.routes[0:0] = session_router(app).routes
    return TestClient(server)


@pytest.fixture
def client(app: Any) -> TestClient:
    return client_of(app)


@pytest.fixture
def content() -> bytes:
    return nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)).to_bytes()


@pytest.fixture
def no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Afterwards there is nothing in the folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def put(client: TestClient, *files: tuple[str, bytes], **query: Any) -> Any:
    return client.put("/session/", params=query, files=[("files", file) for file in files])


def test_a_session_from_begin_to_end(client: TestClient, app: Any, content: bytes, no_litter: Path) -> None:
    session_id = put(client, ("../../mine.nii", content)).json()["session_id"]
    image = Path(app.sessions().get_session(session_id).image)
    assert image.read_bytes() == content
    assert image.is_relative_to(app.sessions().store_path)
    assert app.found == [image], "the app is told, so that it can get ready"
    assert client.get(f"/session/{session_id}").json()["name"] == session_id
    assert client.get(f"/session/{session_id}?image=true").content == content
    assert client.delete(f"/session/{session_id}").json()["name"] == session_id
    assert not image.exists()
    assert client.get(f"/session/{session_id}").status_code == 404


@pytest.mark.parametrize(
    ("files", "query", "said"),
    [
        ([("a.nii", b""), ("b.nii", b"")], {}, "'2 files' is not accepted; allowed: one file"),
        ([("a.dcm", b"x")], {}, "'a.dcm' is not accepted; allowed: a name that ends in .nii.gz"),
        ([("a.nii.gz", b"no image")], {}, "upload.nii.gz"),
        ([("a.zip", b"x")], {"uncompress": "true"}, "uncompress: True is not accepted; allowed: false"),
    ],
)
def test_what_is_not_one_image_is_refused(
    client: TestClient, app: Any, files: Any, query: Any, said: str, no_litter: Path
) -> None:
    answer = put(client, *files, **query)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert not Path(app.sessions().store_path).exists()
    assert app.found == []


def test_no_file_is_no_session(client: TestClient) -> None:
    assert client.put("/session/").status_code == 422


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("session_id", ["nope", "..", "%2e%2e%2fetc", "a.b", "x" * 65])
def test_an_unknown_session_is_named(client: TestClient, app: Any, method: str, session_id: str) -> None:
    Path(app.sessions().store_path).mkdir()
    answer = client.request(method, f"/session/{session_id}")
    assert answer.status_code in (404, 405)
    assert Path(app.sessions().store_path).is_dir()


def test_the_text_for_an_unknown_session(client: TestClient) -> None:
    answer = client.get("/session/nope")
    assert answer.json()["detail"] == (
        "session_id: 'nope' is not accepted; allowed: the id of a session that is open"
    )


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_switched_off_sessions_say_so(method: str) -> None:
    app = SimpleNamespace(sessions=lambda: None)
    path = "/session/" if method == "PUT" else "/session/x"
    files = {"files": ("a.nii", b"x")} if method == "PUT" else None
    answer = client_of(app).request(method, path, files=files)
    assert answer.status_code == 406
    assert "MONAI_LABEL_SESSIONS" in answer.json()["detail"]
