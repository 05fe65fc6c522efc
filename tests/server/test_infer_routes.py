"""POST /infer at the edge: what reaches the app, what is refused before, and what is left behind."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from requests_toolbelt import MultipartDecoder
from starlette.testclient import TestClient

from lib.errors import BusyError, ClientGoneError, InputError
from lib.server.infer_routes import infer_router
from lib.settings import ServingSettings
from lib.turns import Asker

MASK = b"the mask"
Infer = Callable[[dict[str, Any]], None]


class App:
    """Answers with a file, as MONAI Label's app does, and keeps what it was asked; `during` runs meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        self.during: Infer = lambda request: None

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        self.during(request)
        path = self.folder / "mask.nrrd"
        path.write_bytes(MASK)
        return {"file": str(path), "label": str(path), "tag": "original", "params": {"version": 3}}

    def datastore(self) -> Any:
        return SimpleNamespace()

    def sessions(self) -> None:
        return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; afterwards it is empty."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def app(folder: Path) -> App:
    return App(folder)


def server_of(app: App, **serving: Any) -> FastAPI:
    server = FastAPI()
    server.router.routes[0:0] = infer_router(app, ServingSettings(**serving)).routes
    return server


@pytest.fixture
def client(app: App) -> TestClient:
    return TestClient(server_of(app), raise_server_exceptions=False)


def ask(client: TestClient, params: Any = None, files: Any = None, **query: str) -> Any:
    text = params if isinstance(params, str) else json.dumps(params or {})
    return client.post(
        "/infer/medsa", params={"image": "a", **query}, files={"params": (None, text), **(files or {})}
    )


def test_the_answer_is_bare_or_json_or_both(client: TestClient) -> None:
    bare = ask(client, output="image")
    assert (bare.content, bare.headers["content-length"]) == (MASK, str(len(MASK)))
    assert bare.headers["content-disposition"] == 'attachment; filename="mask.nrrd"'
    assert ask(client, output="json").json() == {"version": 3}
    for query in ({}, {"output": "all"}):
        both = ask(client, **query)
        parts = MultipartDecoder(both.content, both.headers["content-type"]).parts
        assert (json.loads(parts[0].content), parts[1].content) == ({"version": 3}, MASK)


def test_the_app_learns_who_asks_and_until_when(app: App) -> None:
    client = TestClient(server_of(app, request_seconds=7))
    assert ask(client, {"client_id": "ann"}).status_code == 200
    asker = app.asked[0]["asker"]
    assert isinstance(asker, Asker)
    assert (asker.client, asker.background, asker.limit_s) == ("ann", False, 7)
    assert asker.deadline is not None
    assert asker.gone.is_set(), "nothing goes on for an answer that was sent"


def test_files_come_along_and_vanish(app: App, client: TestClient) -> None:
    seen: list[bytes] = []
    app.during = lambda request: seen.extend(
        [request["image"].read_bytes(), request["label_file"].read_bytes()]
    )
    files = {"file": ("a.nii.gz", b"image"), "label": ("s.bin", b"strokes")}
    assert ask(client, files=files).status_code == 200
    assert seen == [b"image", b"strokes"]
    assert app.asked[0]["label_file"].suffix == ".bin"
    assert not app.asked[0]["label_file"].exists()


def test_params_cannot_name_what_the_server_knows(app: App, client: TestClient) -> None:
    lies = {"model": "x", "image": "/etc/hostname", "asker": "me", "label_file": "/etc/hostname"}
    assert ask(client, lies).status_code == 200
    asked = app.asked[0]
    assert (asked["model"], asked["image"], type(asked["asker"])) == ("medsa", "a", Asker)
    assert "label_file" not in asked


@pytest.mark.parametrize(
    ("params", "files", "query", "said"),
    [
        ({}, {}, {"output": "dicom_seg"}, "output: 'dicom_seg'"),
        ({}, {}, {"image": ""}, "an image id, a session_id or an uploaded file"),
        ({}, {"label": ("a.stl", b"x")}, {}, "'a.stl' is not accepted; allowed: a name that ends in .nii.gz"),
        ({}, {"label": ("a.png", b"x")}, {}, "'a.png'"),
        ({}, {"label": (None, "text")}, {}, "label: 'text' is not accepted; allowed: an uploaded file"),
        ({}, {"file": (None, "text")}, {}, "file: 'text' is not accepted; allowed: an uploaded file"),
        ({}, {"params": ("p.json", b"{}")}, {}, "params: 'p.json' is not accepted; allowed: a text field"),
        ("[" * 100_000, {}, {}, "a JSON object"),
        ("7", {}, {}, "a JSON object"),
    ],
)
def test_a_bad_request_does_not_reach_the_app(
    app: App, client: TestClient, params: Any, files: Any, query: dict[str, str], said: str
) -> None:
    answer = ask(client, params, files, **query)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert app.asked == []


def test_an_empty_file_field_is_no_file(app: App, client: TestClient) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--b--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/infer/medsa?image=a", content=body, headers=headers).status_code == 200
    assert app.asked[0]["image"] == "a"


def test_no_form_at_all_is_no_prompt_but_no_error_of_ours(app: App, client: TestClient) -> None:
    assert client.post("/infer/medsa?image=a").status_code == 200
    assert app.asked[0]["image"] == "a"


def test_many_points_reach_the_parser_and_too_much_text_does_not(app: App, client: TestClient) -> None:
    assert ask(client, {"foreground": [[100, 200, 50]] * 100_000}).status_code == 200
    assert len(app.asked[0]["foreground"]) == 100_000
    answer = ask(client, {"text": "x" * (4 << 20)})
    assert answer.status_code == 413
    assert answer.json()["detail"] == "params: 'over 4 MB' is not accepted; allowed: at most 4 MB"
    assert len(app.asked) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("image", 1, "2"), 422), (ClientGoneError("left"), 499), (OSError("/secret"), 500)],
)
def test_errors_of_the_app_are_answers(app: App, client: TestClient, error: Exception, status: int) -> None:
    def fail(request: dict[str, Any]) -> None:
        raise error

    app.during = fail
    answer = ask(client)
    assert answer.status_code == status
    assert "secret" not in answer.text


def test_a_busy_model_says_when_to_come_again(app: App, client: TestClient) -> None:
    def fail(request: dict[str, Any]) -> None:
        raise BusyError("busy: waited 5 s", 7)

    app.during = fail
    answer = ask(client)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json() == {"detail": "busy: waited 5 s"}


def test_a_full_queue_is_answered_at_once_and_a_free_place_is_taken(app: App) -> None:
    client = TestClient(server_of(app, queue_length=1))
    inside, go_on, answers = threading.Event(), threading.Event(), []

    def wait(request: dict[str, Any]) -> None:
        inside.set()
        assert go_on.wait(30)

    app.during = wait
    thread = threading.Thread(target=lambda: answers.append(ask(client).status_code))
    thread.start()
    assert inside.wait(30)
    refused = ask(client)
    assert (refused.status_code, "all 1 places" in refused.json()["detail"]) == (503, True)
    assert int(refused.headers["retry-after"]) >= 1
    go_on.set()
    thread.join(30)
    app.during = lambda request: None
    assert (answers, ask(client).status_code) == ([200], 200)
    assert len(app.asked) == 2


def form(text: str = "{}") -> tuple[bytes, list[tuple[bytes, bytes]]]:
    body = f'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{text}\r\n--b--\r\n'.encode()
    return body, [(b"content-type", b"multipart/form-data; boundary=b")]


async def call(server: FastAPI, receive: Any) -> list[Any]:
    """What the server sends for a request whose messages come from `receive`."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/infer/medsa",
        "query_string": b"image=a",
        "headers": form()[1],
        "client": ("10.0.0.7", 1),
    }
    await server(scope, receive, send)
    return sent


def test_a_client_that_leaves_is_noticed_while_its_answer_is_computed(app: App) -> None:
    inside = threading.Event()

    def wait(request: dict[str, Any]) -> None:
        inside.set()
        assert request["asker"].gone.wait(30)
        raise ClientGoneError("the client has left")

    messages = iter([{"type": "http.request", "body": form()[0], "more_body": False}])

    async def receive() -> Any:
        message = next(messages, None)
        while message is None and not inside.is_set():
            await asyncio.sleep(0.01)
        return message or {"type": "http.disconnect"}

    app.during = wait
    server = server_of(app, queue_length=1)
    assert asyncio.run(call(server, receive))[0]["status"] == 499
    app.during = lambda request: None
    assert ask(TestClient(server)).status_code == 200


def test_a_client_that_leaves_while_it_sends_frees_its_place(app: App) -> None:
    messages = iter(
        [{"type": "http.request", "body": form()[0][:20], "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive() -> Any:
        return next(messages)

    server = server_of(app, queue_length=1)
    assert asyncio.run(call(server, receive))[0]["status"] == 499
    assert app.asked == []
    assert ask(TestClient(server)).status_code == 200


def test_a_body_that_does_not_arrive_frees_its_place(app: App) -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    server = server_of(app, queue_length=1, request_seconds=0.05)
    sent = asyncio.run(call(server, receive))
    assert sent[0]["status"] == 503
    assert b"did not arrive within the limit of 0.05 s" in sent[1]["body"]
    assert b"retry-after" in dict(sent[0]["headers"])
    assert ask(TestClient(server)).status_code == 200


@pytest.mark.parametrize("model", ["medsa", "medsa_auto"])
def test_batches_are_refused_with_what_to_use_instead(client: TestClient, model: str) -> None:
    answer = client.post(f"/batch/infer/{model}")
    assert answer.status_code == 422
    assert "POST /infer/medsa_auto" in answer.json()["detail"]


def test_the_form_is_described(client: TestClient) -> None:
    route = client.get("/openapi.json").json()["paths"]["/infer/{model}"]["post"]
    fields = route["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"params", "file", "label"}
