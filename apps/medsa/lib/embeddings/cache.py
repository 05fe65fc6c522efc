"""Embeddings in memory, and behind them, if there is one, the disk.

Concurrency. Shared between requests: the table and the counts, guarded by one lock that is never held while the disk
is used. Two requests that miss at the same time may both read the file; the later one is kept.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from lib.embeddings.disk import DiskCache, DiskStats
from lib.embeddings.key import SliceKey


@dataclass(frozen=True)
class CacheStats:
    """Counts since the cache was made; `used_bytes` and `slices` are of now.

    `hits` were in memory, `disk_hits` on disk alone, `misses` nowhere. `disk` is None where there is no disk cache.
    """

    hits: int
    disk_hits: int
    misses: int
    evictions: int
    slices: int
    used_bytes: int
    max_bytes: int
    disk: DiskStats | None = None


class EmbeddingCache:
    """Embeddings (256, g, g) by slice; beyond `max_bytes` of memory the least recently used go. Thread-safe.

    With `max_bytes` 0 memory keeps nothing. What leaves memory stays on `disk`, and comes back when it is asked for.
    """

    def __init__(self, max_bytes: int, disk: DiskCache | None = None) -> None:
        self.max_bytes, self.disk = max_bytes, disk
        self._lock = threading.Lock()
        self._entries: OrderedDict[SliceKey, Tensor] = OrderedDict()
        self._used = self._hits = self._disk_hits = self._misses = self._evictions = 0

    @property
    def is_off(self) -> bool:
        """Whether nothing at all is kept."""
        return self.max_bytes == 0 and self.disk is None

    def get(self, key: SliceKey) -> Tensor | None:
        """The embedding as it was stored (not to be written to), or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._hits += 1
                self._entries.move_to_end(key)
                return entry
        entry = None if self.disk is None else self.disk.get(key)
        with self._lock:
            self._disk_hits += entry is not None
            self._misses += entry is None
        if entry is not None:
            self._keep(key, entry)
        return entry

    def peek(self, key: SliceKey) -> Tensor | None:
        """Like `get`, but memory neither counts it nor makes it any younger."""
        with self._lock:
            entry = self._entries.get(key)
        return self.disk.get(key) if entry is None and self.disk is not None else entry

    def contains(self, key: SliceKey) -> bool:
        """Whether memory or disk has the slice; a file that turns out to be damaged counts until it is read."""
        with self._lock:
            if key in self._entries:
                return True
        return self.disk is not None and self.disk.contains(key)

    def put(self, key: SliceKey, embedding: Tensor) -> None:
        """Keeps `embedding` in memory and on disk, except where it alone exceeds the bound."""
        self._keep(key, embedding)
        if self.disk is not None:
            self.disk.put(key, embedding)

    def stats(self) -> CacheStats:
        """How well the cache does, as of now."""
        disk = None if self.disk is None else self.disk.stats()
        with self._lock:
            return CacheStats(
                self._hits,
                self._disk_hits,
                self._misses,
                self._evictions,
                len(self._entries),
                self._used,
                self.max_bytes,
                disk,
            )

    def _keep(self, key: SliceKey, embedding: Tensor) -> None:
        size = embedding.nbytes
        if size > self.max_bytes:
            return
        with self._lock:
            replaced = self._entries.pop(key, None)
            self._used += size - (0 if replaced is None else replaced.nbytes)
            self._entries[key] = embedding
            while self._used > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._used -= oldest.nbytes
                self._evictions += 1
