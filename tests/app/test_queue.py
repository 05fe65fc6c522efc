"""Many at once, too much at once and clients that leave, against the real server."""

import http.client
import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import nibabel
import numpy as np
import pytest

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

CLICK = {"foreground": [[20, 18, 10]], "background": []}
MB = 1 << 20
PLACES = 8
LEFT = b"the client has left"
WaitUntil = Callable[[Callable[[], bool], str], None]


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Any]) -> Any:
    return make_server(
        cases=4, auto_train="false", queue_length=str(PLACES), max_body_mb="16", request_seconds="900"
    )


def slow_request(server: Any, seed: int, slices: int = 160) -> httpx.Request:
    """A click on every slice of a volume nobody has encoded: all are encoded, whatever the untrained model sees."""
    voxels = np.random.default_rng(seed).normal(100, 30, (64, 64, slices)).astype(np.int16)
    content = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])).to_bytes()
    params = {"foreground": [[32, 32, k] for k in range(slices)], "client_id": "ann"}
    files = {"params": (None, json.dumps(params)), "file": ("a.nii", content)}
    return httpx.Request("POST", f"{server.url}/infer/medsa?output=json", files=files)


def connect(server: Any) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=600)


def send(server: Any, request: httpx.Request) -> socket.socket:
    """Sends the request and leaves the answer to whoever reads the socket."""
    connection = connect(server)
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + request.read())
    return connection


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(1 << 16).split()[1])


def log_of(server: Any) -> bytes:
    return (server.state.parent / "server.log").read_bytes()


def click(server: Any, **query: str) -> httpx.Response:
    return server.infer(CLICK, **{"image": "case0", "output": "json", **query})


def until_clicked(server: Any, wait_until: WaitUntil) -> None:
    """A click is refused as long as the queue is full, and then answered."""

    def clicked() -> bool:
        answer = click(server)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200

    wait_until(clicked, "a free place")


def test_a_full_queue_says_so_and_clients_that_leave_free_their_places(
    server: Any, wait_until: WaitUntil
) -> None:
    assert click(server).status_code == 200
    connections = [send(server, slow_request(server, seed)) for seed in range(PLACES)]
    wait_until(lambda: click(server).status_code == 503, "the queue to be full")
    refused = click(server)
    assert refused.json() == {"detail": f"all {PLACES} places of the queue are taken; ask again"}
    assert int(refused.headers["retry-after"]) >= 1
    assert server.get("/info/").status_code == 200
    left = log_of(server).count(LEFT)
    for connection in connections:
        connection.close()
    until_clicked(server, wait_until)
    wait_until(lambda: log_of(server).count(LEFT) == left + PLACES, "all to be noticed as gone")


def test_one_clients_many_requests_do_not_make_another_wait(server: Any) -> None:
    connections = [send(server, slow_request(server, 100 + number, slices=120)) for number in range(3)]
    order: list[str] = []

    def read(connection: socket.socket) -> None:
        assert status_of(connection) == 200
        order.append("ann")
        connection.close()

    readers = [threading.Thread(target=read, args=(connection,)) for connection in connections]
    for reader in readers:
        reader.start()
    answer = server.infer({**CLICK, "client_id": "bob"}, image="case1", output="json")
    order.append("bob")
    assert answer.status_code == 200, answer.text
    for reader in readers:
        reader.join()
    assert order == ["bob", "ann", "ann", "ann"]


def test_the_server_answers_while_eight_click(server: Any) -> None:
    answers: list[int] = []

    def annotate(number: int) -> None:
        for turn in range(4):
            params = {"foreground": [[20, 18, 8 + turn]], "client_id": f"annotator {number}"}
            answers.append(server.infer(params, image=f"case{number % 4}", output="json").status_code)

    threads = [threading.Thread(target=annotate, args=(number,)) for number in range(PLACES)]
    for thread in threads:
        thread.start()
    meanwhile = 0
    while any(thread.is_alive() for thread in threads):
        for path in ("/info/", "/medsa/status", "/datastore/"):
            assert server.get(path).status_code == 200
        assert server.get("/train/", check_if_running="true").status_code == 404
        assert server.get("/datastore/image", image="case0").status_code == 200
        meanwhile += 1
    assert answers == [200] * 32
    assert meanwhile >= 3


def pieces(size: int) -> Iterator[bytes]:
    """Sent in chunks, without a Content-Length."""
    for _ in range(size // MB):
        yield bytes(MB)


BODIES = [
    ("POST", "/infer/medsa?image=case0"),
    ("PUT", "/session/"),
    ("PUT", "/datastore/image?image=new"),
    ("PUT", "/datastore/label?image=case0"),
    ("POST", "/train/medsa"),
    ("POST", "/activelearning/medsa"),
    ("PUT", "/model/medsa"),
    ("POST", "/token"),
    ("POST", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_a_body_of_2_gb_is_refused_before_it_comes(server: Any, method: str, path: str) -> None:
    with connect(server) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        connection.sendall(f"{head}Content-Length: {2 << 30}\r\n\r\n--b\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert "at most 16 MB (max_body_mb)" in json.loads(answer.read())["detail"]
    assert server.get("/info/").status_code == 200


@pytest.mark.parametrize(("method", "path"), BODIES[:5])
def test_a_body_of_unknown_length_is_cut(server: Any, method: str, path: str) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.nii"\r\n\r\n'
    content_type = "application/json" if "train" in path else "multipart/form-data; boundary=b"

    def body() -> Iterator[bytes]:
        yield head
        yield from pieces(64 * MB)

    with server.client() as client:
        answer = client.request(method, path, content=body(), headers={"content-type": content_type})
    assert answer.status_code == 413
    assert "at most 16 MB (max_body_mb)" in answer.json()["detail"]
    assert server.get("/info/").status_code == 200


def test_a_client_that_sends_all_before_it_reads_gets_the_refusal(server: Any) -> None:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=600)
    connection.request(
        "PUT", "/session/", body=io.BytesIO(bytes(200 * MB)), headers={"Content-Length": str(200 * MB)}
    )
    assert connection.getresponse().status == 413
    connection.close()
    assert click(server).status_code == 200


def test_a_hundred_thousand_points_are_counted(server: Any) -> None:
    answer = server.infer({"foreground": [[20, 18, 10]] * 100_000}, image="case0")
    assert answer.status_code == 422
    assert "'100000 points' is not accepted; allowed: at most 1000 points" in answer.json()["detail"]
    answer = server.infer({"foreground": [[20, 18, 10]] * 400_000}, image="case0")
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "params: 'over 4 MB' is not accepted; allowed: at most 4 MB",
    )
    assert click(server).status_code == 200


def test_sessions_are_known_by_id_only(server: Any) -> None:
    content = (server.studies / "case0.nii.gz").read_bytes()
    with server.client() as client:
        session_id = client.put("/session/", files={"files": ("mine.nii.gz", content)}).json()["session_id"]
        assert client.get(f"/session/{session_id}").status_code == 200
        assert server.infer(CLICK, session_id=session_id, output="json").status_code == 200
        assert client.delete(f"/session/{session_id}").status_code == 200
        for unknown in (session_id, "nope", "..%2f..%2fetc"):
            assert client.get(f"/session/{unknown}").status_code == 404
            assert client.delete(f"/session/{unknown}").status_code == 404
        gone = server.infer(CLICK, session_id=session_id)
        assert (gone.status_code, "a session that is open" in gone.json()["detail"]) == (404, True)
        no_image = client.put("/session/", files={"files": ("mine.nii.gz", b"no image")})
        assert no_image.status_code == 422
        two = client.put("/session/", files=[("files", ("a.nii", b"x")), ("files", ("b.nii", b"x"))])
        assert (two.status_code, "one file" in two.json()["detail"]) == (422, True)


def test_a_request_that_takes_too_long_is_ended(
    make_server: Callable[..., Any], wait_until: WaitUntil
) -> None:
    hasty = make_server(cases=1, auto_train="false", request_seconds="3", queue_length="2")
    answers: Sequence[httpx.Response]
    with hasty.client() as client:
        answers = [client.send(slow_request(hasty, seed)) for seed in (1, 2)]
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert re.search(r"limit (is|of) 3 s", answer.json()["detail"])
        assert int(answer.headers["retry-after"]) >= 1
    wait_until(
        lambda: hasty.infer(CLICK, model="medsa_2d", image="case0", output="json").status_code == 200,
        "a click that takes less",
    )
