"""Fetches a published checkpoint once: resumable, checked, and safe against two processes at the same time.

Shared state: the files `NAME`, `NAME.part` and `NAME.lock` in one folder. Whoever holds the file lock owns
the other two; `NAME` appears only whole and only with the right hash.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx
from filelock import FileLock
from tqdm import tqdm

from lib.errors import CheckpointError
from lib.model.base import file_sha256

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class _Wanted:
    """One file as it is published: where it is, where it goes, and what it must be."""

    url: str
    target: Path
    sha256: str
    size_bytes: int

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.target}: {what}; or download {self.url} by hand and put it there "
            f"({self.size_bytes} bytes, sha256 {self.sha256})"
        )


def fetch(url: str, target: Path, sha256: str, size_bytes: int, *, progress: bool = True) -> Path:
    """The file of `url` at `target`, downloaded if it is not there yet; an earlier, cut download is resumed.

    Raises CheckpointError, which says what to put where, when the server cannot be reached, answers with an
    error or ends early, and when the content (or a file already at `target`) has another hash.
    """
    wanted = _Wanted(url, target, sha256, size_bytes)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            _check_present(wanted)
        else:
            _download(wanted, progress)
    return target


def _check_present(wanted: _Wanted) -> None:
    # Somebody put this file here: it is named and left alone, not replaced.
    found = file_sha256(wanted.target)
    if found != wanted.sha256:
        raise wanted.error(f"sha256 is {found}, needed {wanted.sha256}; remove it and start again")


def _download(wanted: _Wanted, progress: bool) -> None:
    if _bytes_there(wanted.part) > wanted.size_bytes:
        wanted.part.unlink()
    if _bytes_there(wanted.part) < wanted.size_bytes:
        try:
            _receive(wanted, progress)
        except (httpx.HTTPError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise wanted.error(f"the download failed ({reason}); {_kept(wanted)}") from error
    _check_part(wanted)
    os.replace(wanted.part, wanted.target)


def _bytes_there(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _kept(wanted: _Wanted) -> str:
    there = _bytes_there(wanted.part)
    return f"{there} of {wanted.size_bytes} bytes are kept; start again to go on"


def _check_part(wanted: _Wanted) -> None:
    if _bytes_there(wanted.part) < wanted.size_bytes:
        raise wanted.error(f"the download ended early; {_kept(wanted)}")
    found = file_sha256(wanted.part)
    if found != wanted.sha256:
        wanted.part.unlink()
        raise wanted.error(
            f"what was sent has sha256 {found}, needed {wanted.sha256}; it was removed; start again"
        )


def _receive(wanted: _Wanted, progress: bool) -> None:
    """Appends to the `.part` file what is still missing of it."""
    start = _bytes_there(wanted.part)
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with httpx.stream("GET", wanted.url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            wanted.part.unlink()  # it belongs to another, longer file
        response.raise_for_status()
        resumed = start > 0 and _starts_at(response, start)
        start = start if resumed else 0
        with wanted.part.open("ab" if resumed else "wb") as stream, _bar(wanted, start, progress) as bar:
            _write(response.iter_raw(PIECE_BYTES), stream, wanted.size_bytes - start, bar)


def _starts_at(response: httpx.Response, start: int) -> bool:
    """Whether the server honoured the Range; one that ignores it answers 200 and sends the whole file."""
    content_range = response.headers.get("Content-Range", "")
    return response.status_code == httpx.codes.PARTIAL_CONTENT and content_range.startswith(f"bytes {start}-")


def _write(pieces: Iterator[bytes], stream: BinaryIO, limit_bytes: int, bar: "tqdm[None]") -> None:
    # Never more than was announced: a wrong address must not fill the disk.
    for piece in pieces:
        stream.write(piece[:limit_bytes])
        bar.update(len(piece))
        limit_bytes -= len(piece)
        if limit_bytes <= 0:
            break
    stream.flush()
    os.fsync(stream.fileno())


def _bar(wanted: _Wanted, start: int, progress: bool) -> "tqdm[None]":
    name, total = wanted.target.name, wanted.size_bytes
    return tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=not progress)
