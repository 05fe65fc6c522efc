"""`fetch` against a real HTTP server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lib.download import fetch
from lib.errors import CheckpointError

CONTENT = bytes(range(256)) * 9000  # more than two pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class FileServer:
    """Serves CONTENT; `cut_after` ends the body early, `ranges` says whether Range is honoured."""

    url: str = ""
    cut_after: int | None = None
    ranges: bool = True
    status: int | None = None
    content: bytes = CONTENT
    asked_ranges: list[str | None] = field(default_factory=list)


def _handler(state: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked_ranges.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.ranges else 0
            body = state.content[start:]
            self.send_response(state.status or (206 if start else 200))
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}"
                )
            self.end_headers()
            self.wfile.write(body[: state.cut_after])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler


@pytest.fixture
def server() -> Iterator[FileServer]:
    state = FileServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{http.server_address[1]}/base.pth"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "base.pth"


def _fetch(server: FileServer, target: Path, sha256: str = SHA256) -> Path:
    return fetch(server.url, target, sha256, len(CONTENT), progress=False)


def _part(target: Path) -> Path:
    return target.with_name("base.pth.part")


def test_fetches_the_whole_file_once(server: FileServer, target: Path) -> None:
    assert _fetch(server, target) == target
    assert _fetch(server, target) == target
    assert target.read_bytes() == CONTENT
    assert server.asked_ranges == [None]
    assert not _part(target).exists()


def test_resumes_where_a_cut_download_ended(server: FileServer, target: Path) -> None:
    server.cut_after = 1_500_000
    with pytest.raises(CheckpointError, match=r"of 2304000 bytes are kept"):
        _fetch(server, target)
    kept = _part(target).stat().st_size
    assert 0 < kept <= 1_500_000
    assert not target.exists()

    server.cut_after = None
    _fetch(server, target)
    assert server.asked_ranges == [None, f"bytes={kept}-"]
    assert target.read_bytes() == CONTENT


def test_starts_anew_when_the_server_ignores_the_range(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    _part(target).write_bytes(CONTENT[:1000])
    server.ranges = False
    _fetch(server, target)
    assert server.asked_ranges == ["bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_a_finished_part_is_taken_without_a_request(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    _part(target).write_bytes(CONTENT)
    _fetch(server, target)
    assert server.asked_ranges == []
    assert target.read_bytes() == CONTENT


def test_a_part_of_something_longer_is_thrown_away(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    _part(target).write_bytes(CONTENT + b"more")
    _fetch(server, target)
    assert server.asked_ranges == [None]
    assert target.read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_removed(server: FileServer, target: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has sha256 {SHA256}, needed {'0' * 64}; it was removed"):
        _fetch(server, target, sha256="0" * 64)
    assert not target.exists()
    assert not _part(target).exists()


def test_a_longer_answer_is_cut_and_then_refused(server: FileServer, target: Path) -> None:
    server.content = b"x" + CONTENT
    with pytest.raises(CheckpointError, match="it was removed"):
        _fetch(server, target)
    assert not target.exists()


def test_a_wrong_file_put_there_by_hand_is_named_and_left(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=f"base.pth: sha256 is .*, needed {SHA256}; remove it"):
        _fetch(server, target)
    assert target.read_bytes() == b"mine"
    assert server.asked_ranges == []


def test_an_error_status_is_reported(server: FileServer, target: Path) -> None:
    server.status = 404
    with pytest.raises(CheckpointError, match="404"):
        _fetch(server, target)
    assert not target.exists()


def test_a_refused_range_drops_the_part(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    _part(target).write_bytes(b"of another file")
    server.status = 416
    with pytest.raises(CheckpointError, match="416"):
        _fetch(server, target)
    assert not _part(target).exists()


def test_offline_says_which_file_from_where_and_where_to_put_it(server: FileServer, target: Path) -> None:
    offline = FileServer(url="http://127.0.0.1:1/base.pth")
    with pytest.raises(CheckpointError) as caught:
        _fetch(offline, target)
    for needed in (offline.url, str(target), SHA256, f"{len(CONTENT)} bytes"):
        assert needed in str(caught.value)


def test_two_at_the_same_time_download_once(server: FileServer, target: Path) -> None:
    threads = [threading.Thread(target=_fetch, args=(server, target)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert server.asked_ranges == [None]
