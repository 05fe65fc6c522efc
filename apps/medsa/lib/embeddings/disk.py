"""Embeddings on disk, one file a slice: what a restart, or a lack of memory, does not cost.

    folder/<digest of SliceKey.model>/<digest of the key>.safetensors
    folder/<digest of SliceKey.model>/.*.part   a file being written; a killed process leaves it over

The folder itself is the only index: a file is there or it is not, and its time of change says when it was last used.
Several processes may therefore share it. A file that another one has removed is a miss, as is one that is damaged. All
embeddings of a model lie in a folder of their own, which may be removed at any time.

It is a cache: nothing is flushed to the medium, and whatever goes wrong costs an encoding and a line in the log.

Concurrency. `get` and `contains` may be called from any thread and read files there. `put` only hands over: one thread
writes, so that no click waits for the disk, and it alone removes files to make room. `_lock` guards what waits to be
written and the counts, and is not held while a file is read or written.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lib.embeddings.key import SliceKey, digest
from lib.embeddings.slice_file import pack, unpack
from lib.files import part_beside

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
# What may wait to be written; beyond that slices are kept in memory only.
MAX_PENDING_BYTES = 64 << 20
# A file that was used again within this time is not marked again.
TOUCH_SECONDS = 60.0
# Older than this, a part of a file is left over, and an empty folder is in nobody's use.
LEFTOVER_SECONDS = 600.0
# The share of the bound that is freed at once, and after which others' files are counted again: looking through the
# folder takes a few ms for each thousand files.
SLACK = 32


@dataclass(frozen=True)
class DiskStats:
    """`used_bytes` and `pending` (slices that wait to be written) are of now, the rest counts since the start.

    `dropped` slices came when too many were waiting or could not be written.
    """

    written: int
    dropped: int
    damaged: int
    evictions: int
    pending: int
    used_bytes: int
    max_bytes: int


@dataclass(frozen=True)
class _Entry:
    used_at: float
    size: int
    path: str


class DiskCache:
    """Embeddings by slice in `folder`, `max_bytes` at most; the least recently used go. Thread-safe.

    Nothing is read or made before the first use. The bound holds for all processes that share the folder together, but
    for a 32nd of it for each of them.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._pending: dict[SliceKey, Tensor] = {}
        self._pending_bytes = self._written = self._dropped = self._damaged = self._evictions = 0
        self._used: int | None = None  # None: the folder was not looked through yet
        self._since_scan = 0
        self._logged: set[str] = set()
        # Its thread begins with the first slice, and a process that ends writes first what is waiting.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="embeddings")

    def get(self, key: SliceKey) -> Tensor | None:
        """The embedding as it was stored (not to be written to), or None. A damaged file is removed."""
        with self._lock:
            waiting = self._pending.get(key)
        if waiting is not None:
            return waiting
        path = self._path(key)
        content = self._read(path)
        if content is None:
            return None
        embedding = unpack(content, key)
        if embedding is None:
            self._remove_damaged(path)
        return embedding

    def contains(self, key: SliceKey) -> bool:
        """Whether there is a file, or one to come; it is not read."""
        with self._lock:
            if key in self._pending:
                return True
        return os.path.exists(self._path(key))

    def put(self, key: SliceKey, embedding: Tensor) -> None:
        """Has `embedding` (on the CPU, not to be changed any more) written soon; returns at once."""
        size = embedding.nbytes
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._pending:
                return
            if self._pending_bytes + size > MAX_PENDING_BYTES:
                self._dropped += 1
                return
            self._pending[key] = embedding
            self._pending_bytes += size
        try:
            self._writer.submit(self._write_pending, key)
        except RuntimeError:  # the process is ending
            self._forget(key)

    def flush(self) -> None:
        """Waits until all that was put is written or given up."""
        self._writer.submit(lambda: None).result()

    def stats(self) -> DiskStats:
        """How well the disk does, as of now; looks through the folder if nobody has yet."""
        used = self._used
        if used is None:
            used = sum(entry.size for entry in self._entries())
        with self._lock:
            return DiskStats(
                self._written,
                self._dropped,
                self._damaged,
                self._evictions,
                len(self._pending),
                used,
                self.max_bytes,
            )

    def _path(self, key: SliceKey) -> Path:
        return self.folder / digest(key.model) / f"{key.digest}{SUFFIX}"

    def _read(self, path: Path) -> bytes | None:
        try:
            with path.open("rb", buffering=0) as stream:
                stale = time.time() - os.fstat(stream.fileno()).st_mtime > TOUCH_SECONDS
                content = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn_once("embeddings on disk cannot be read: %s", error)
            return None
        if stale:
            with suppress(OSError):
                os.utime(path)
        return content

    def _remove_damaged(self, path: Path) -> None:
        with self._lock:
            self._damaged += 1
        self._warn_once("an embedding on disk is damaged; such files are removed and encoded again")
        with suppress(OSError):
            path.unlink()

    def _write_pending(self, key: SliceKey) -> None:
        """Runs in the writer's thread."""
        try:
            content = pack(key, self._pending[key])
            self._make_room(len(content))
            self._write(self._path(key), content)
        except OSError as error:
            with self._lock:
                self._dropped += 1
            self._warn_once("embeddings cannot be kept on disk: %s", error)
        finally:
            self._forget(key)

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_beside(path)
        try:
            part.write_bytes(content)
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        with self._lock:
            self._written += 1
            self._used = (self._used or 0) + len(content)
            self._since_scan += len(content)

    def _forget(self, key: SliceKey) -> None:
        with self._lock:
            self._pending_bytes -= self._pending.pop(key).nbytes

    def _make_room(self, size: int) -> None:
        """Raises OSError where `size` bytes have no room whatever is removed."""
        slack = self.max_bytes // SLACK
        if self._used is not None and self._used + size <= self.max_bytes and self._since_scan <= slack:
            return
        self._remove_leftovers()
        entries = sorted(self._entries(), key=lambda entry: entry.used_at, reverse=True)
        used = sum(entry.size for entry in entries)
        if used + size > self.max_bytes:
            while entries and used + size > self.max_bytes - slack:
                used -= self._evict(entries.pop())
        with self._lock:
            self._used, self._since_scan = used, 0
        if used + size > self.max_bytes:
            raise OSError(errno.EDQUOT, "no room within the bound")

    def _evict(self, entry: _Entry) -> int:
        """How many bytes became free."""
        try:
            os.unlink(entry.path)
        except FileNotFoundError:
            return entry.size
        except OSError as error:
            self._warn_once("embeddings on disk cannot be removed: %s", error)
            return 0
        with self._lock:
            self._evictions += 1
        return entry.size

    def _entries(self) -> Iterator[_Entry]:
        for file in _files(self.folder):
            if file.name.endswith(SUFFIX):
                with suppress(FileNotFoundError):
                    status = file.stat()
                    yield _Entry(status.st_mtime, status.st_size, file.path)

    def _remove_leftovers(self) -> None:
        old = time.time() - LEFTOVER_SECONDS
        for file in _files(self.folder):
            if file.name.endswith(".part"):
                with suppress(OSError):
                    if file.stat().st_mtime < old:
                        os.unlink(file.path)
        for folder in _folders(self.folder):
            with suppress(OSError):
                if folder.stat().st_mtime < old:
                    os.rmdir(folder.path)  # refused where there is anything in it

    def _warn_once(self, text: str, error: OSError | None = None) -> None:
        """Without the error's own text: it holds the path."""
        with self._lock:
            if text in self._logged:
                return
            self._logged.add(text)
        log.warning(text, *(() if error is None else (error.strerror,)))


def _folders(root: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(root) as listing:
        yield from (entry for entry in listing if entry.is_dir(follow_symlinks=False))


def _files(root: Path) -> Iterator[os.DirEntry[str]]:
    for folder in _folders(root):
        with suppress(OSError), os.scandir(folder.path) as listing:
            yield from listing
