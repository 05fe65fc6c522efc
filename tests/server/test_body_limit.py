"""Bodies that are too large, announced or not, on routes of whatever kind."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from lib.server.body_limit import limit_bodies

MB = 1 << 20
SAID = "at most 1 MB (max_body_mb)"


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A server with three ways to read a body; the limit comes when it is already starting."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limit_bodies(app, 1)
        yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])

    @app.put("/file")
    def put_file(file: Annotated[UploadFile, File()], params: Annotated[str, Form()] = "{}") -> Any:
        return {"size": file.size}

    @app.post("/json")
    async def post_json(body: dict[str, Any]) -> Any:
        return {"keys": len(body)}

    @app.post("/plain")
    async def post_plain(request: Request) -> Any:
        return {"size": len(await request.body())}

    @app.post("/unread")
    async def post_unread(request: Request) -> Any:
        return JSONResponse({"read": False})

    with TestClient(app) as client:
        yield client


def pieces(count: int) -> Iterator[bytes]:
    """Sent without a Content-Length."""
    for _ in range(count):
        yield b"x" * (MB // 4)


def test_what_fits_is_taken(client: TestClient) -> None:
    assert client.post("/plain", content=b"x" * MB).json() == {"size": MB}
    assert client.post("/plain", content=pieces(4)).json() == {"size": MB}
    assert client.put("/file", files={"file": ("a.bin", b"x" * (MB - 1000))}).status_code == 200
    assert client.post("/json", json={"a": 1}).json() == {"keys": 1}
    assert client.post("/unread").json() == {"read": False}


@pytest.mark.parametrize("path", ["/plain", "/json", "/unread", "/nowhere"])
def test_what_is_announced_as_too_large_is_refused_on_every_route(client: TestClient, path: str) -> None:
    answer = client.post(path, content=b"x" * (MB + 1), headers={"origin": "http://viewer"})
    assert answer.status_code == 413
    assert answer.json()["detail"] == f"body: '{MB + 1} bytes' is not accepted; allowed: {SAID}"
    assert answer.headers["connection"] == "close"
    assert answer.headers["access-control-allow-origin"] == "*", "or the viewer cannot read it"


@pytest.mark.parametrize("path", ["/plain", "/json"])
def test_what_turns_out_to_be_too_large_is_cut(client: TestClient, path: str) -> None:
    answer = client.post(path, content=pieces(8))
    assert (answer.status_code, SAID in answer.json()["detail"]) == (413, True)
    assert client.post("/plain", content=b"x").json() == {"size": 1}


def test_a_form_that_turns_out_to_be_too_large_is_cut(client: TestClient) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        yield from pieces(8)
        yield b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.put("/file", content=body(), headers=headers)
    assert (answer.status_code, SAID in answer.json()["detail"]) == (413, True)


def test_the_refusal_comes_before_the_body_which_is_read_no_further() -> None:
    app = FastAPI()
    limit_bodies(app, 1)
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        assert sent[0]["status"] == 413
        assert sent[1]["body"]
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/nowhere",
        "query_string": b"",
        "headers": [(b"content-length", b"2147483648")],
    }
    asyncio.run(app(scope, receive, send))
    assert [message.get("more_body") for message in sent[1:]] == [True, False]
