"""Errors as answers, and what comes with a request."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, UploadFile
from monailabel.endpoints.user.auth import DEFAULT_USER
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from starlette.testclient import TestClient

from lib.errors import (
    CheckpointError,
    InputError,
    LabelError,
    NotFoundError,
    PacsError,
    PacsUnreachableError,
    TrainingError,
)
from lib.server.routing import AnyUser, MedsaRoute, author, json_object, received, received_label

ERRORS = {
    "notfound": NotFoundError("image", "x", "a"),
    "input": InputError("image", "x", "a"),
    "label": LabelError("does not fit"),
    "training": TrainingError("no labels"),
    "bug": ZeroDivisionError("inside /secret/path"),
    "base": CheckpointError("checkpoint /secret/path: no such file"),
    "pacs": PacsError("the PACS answered 500"),
    "away": PacsUnreachableError("the PACS cannot be reached"),
    "monailabel": MONAILabelException(MONAILabelError.APP_ERROR, "no /secret/path"),
}


@pytest.fixture
def client() -> TestClient:
    router = APIRouter(route_class=MedsaRoute)

    @router.get("/{name}")
    def fail(name: str, user: AnyUser, number: int = 0) -> Any:
        if name in ERRORS:
            raise ERRORS[name]
        return {"user": user.username}

    app = FastAPI()
    app.router.routes[0:0] = router.routes
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("notfound", 404, "image: 'x' is not accepted; allowed: a"),
        ("input", 422, "image: 'x' is not accepted; allowed: a"),
        ("label", 422, "does not fit"),
        ("training", 409, "no labels"),
        ("bug", 500, "internal error: ZeroDivisionError; the server's log has the rest"),
        ("base", 500, "internal error: CheckpointError; the server's log has the rest"),
        ("pacs", 502, "the PACS answered 500"),
        ("away", 503, "the PACS cannot be reached"),
        ("monailabel", 500, "internal error: MONAILabelException; the server's log has the rest"),
    ],
)
def test_an_error_becomes_an_answer(
    client: TestClient, caplog: pytest.LogCaptureFixture, name: str, status: int, said: str
) -> None:
    answer = client.get(f"/{name}")
    assert (answer.status_code, answer.json()) == (status, {"detail": said})
    assert ("/secret/path" in caplog.text) == (status == 500)


def test_the_rest_is_fastapis_own(client: TestClient) -> None:
    assert client.get("/fine").json() == {"user": DEFAULT_USER.username}
    assert client.get("/fine?number=x").status_code == 422


@pytest.mark.parametrize("text", ["{", "[]", "7", '"x"', "null"])
def test_params_have_to_be_an_object(text: str) -> None:
    with pytest.raises(InputError, match="a JSON object"):
        json_object("params", text)


@pytest.mark.parametrize("text", ["", None, "{}"])
def test_no_params_are_an_empty_object(text: str | None) -> None:
    assert json_object("params", text) == {}


def test_who_asks() -> None:
    request: Any = SimpleNamespace(client=SimpleNamespace(host="10.0.0.7"))
    assert author(DEFAULT_USER, {"client_id": "ann"}, request) == "ann"
    assert author(DEFAULT_USER, {}, request) == "host 10.0.0.7"
    # What 3D Slicer sends for whoever has not said a name.
    assert author(DEFAULT_USER, {"client_id": "user-xyz"}, request) == "user-xyz at 10.0.0.7"
    assert author(DEFAULT_USER, {"client_id": ["x"]}, request) == "host 10.0.0.7"


@pytest.mark.parametrize("name", ["a.nii.gz", "../../evil.nii", "x.y.nrrd", "p.png", "p.jpg", "p.jpeg"])
def test_an_upload_gets_a_name_of_ours(name: str) -> None:
    with received(UploadFile(io.BytesIO(b"content"), filename=name)) as path:
        assert path.read_bytes() == b"content"
        assert path.name.startswith("upload.")
    assert not path.parent.exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_pictures_are_images_only(name: str) -> None:
    upload = UploadFile(io.BytesIO(b"x"), filename=name)
    allowed = rf"{name}.*allowed: .* \.nii\.gz, \.nii, \.nrrd, \.bin"
    with pytest.raises(InputError, match=allowed), received_label(upload) as path:
        assert isinstance(path, Path)


def test_raw_voxels_are_labels_only() -> None:
    upload = UploadFile(io.BytesIO(b"x"), filename="label.bin")
    with received_label(upload) as path:
        assert path.suffix == ".bin"
    with pytest.raises(InputError, match=r"label\.bin"), received(upload) as path:
        assert isinstance(path, Path)
