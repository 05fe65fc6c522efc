"""The images of the last clicks, kept so that the next click on one need not read and hash it again.

Concurrency. Shared between requests: the table, guarded by one lock that is never held while a file is
read. Two requests that miss at the same time both read the file; the later one is kept.
"""

import threading
from collections import OrderedDict
from pathlib import Path

from lib.volume import Volume, load_volume

KEPT_VOLUMES = 4
FileKey = tuple[str, int, int]


class VolumeCache:
    """Volumes by file; a file that changed (by time or size) is read again."""

    def __init__(self, keep: int = KEPT_VOLUMES) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._volumes: OrderedDict[FileKey, Volume] = OrderedDict()

    def load(self, path: Path) -> Volume:
        """The volume in `path`; raises VolumeError as load_volume does."""
        key = _key(path)
        with self._lock:
            if key is not None and key in self._volumes:
                self._volumes.move_to_end(key)
                return self._volumes[key]
        volume = load_volume(path)
        if key is not None:
            self._remember(key, volume)
        return volume

    def _remember(self, key: FileKey, volume: Volume) -> None:
        with self._lock:
            self._volumes[key] = volume
            self._volumes.move_to_end(key)
            while len(self._volumes) > self._keep:
                self._volumes.popitem(last=False)


def _key(path: Path) -> FileKey | None:
    try:
        stat = path.stat()
    except OSError:
        return None  # load_volume says what is wrong with it
    return str(path), stat.st_mtime_ns, stat.st_size
