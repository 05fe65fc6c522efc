"""The prompts that were answered last on each image, until a label of it is saved and takes them along.

    <folder>/<hash of the image id>.json   {"image": id, "labels": {label name, "" for none: what was answered last}}

Concurrency. Shared between the server's threads: the files, guarded by `_lock`, which is held for one small file at a
time. No other process writes them. A file appears by rename; it is not flushed, since a click must not wait for the
disk and a lost one costs only its provenance.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.files import part_beside

log = logging.getLogger(__name__)

KEPT_IMAGES = 1000  # of one image there are some kB; those never saved must not pile up


class LastPrompts:
    """The last prompts of every image, in `folder`, which is made at the first write."""

    def __init__(self, folder: Path, keep: int = KEPT_IMAGES) -> None:
        self._folder, self._keep = folder, keep
        self._lock = threading.Lock()

    def note(self, image_id: str, by_label: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps what was answered for each label name; of the other labels of the image the last stays.

        Raises OSError when it cannot be written.
        """
        with self._lock:
            path = self._path(image_id)
            if not path.exists():
                self._make_room()
            self._write(path, image_id, {**self._read(path), **by_label})

    def of(self, image_id: str) -> dict[str, dict[str, Any]]:
        """Label name -> what was answered last; empty when nothing was."""
        with self._lock:
            return self._read(self._path(image_id))

    def clear(self, image_id: str, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Forgets what is in a saved record now; what was answered since then stays."""
        with self._lock:
            path = self._path(image_id)
            left = {name: last for name, last in self._read(path).items() if saved.get(name) != last}
            try:
                self._write(path, image_id, left) if left else path.unlink(missing_ok=True)
            except OSError:
                # The label is saved; the worst is that the next version says the same prompts again.
                log.exception("the last prompts on %s could not be cleared", image_id)

    def _path(self, image_id: str) -> Path:
        # Ids of files that were put there by hand may be too long, or hold anything, for a name with a suffix.
        return self._folder / f"{hashlib.sha256(image_id.encode()).hexdigest()[:32]}.json"

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            labels = json.loads(path.read_text("utf-8"))["labels"]
            return {str(name): dict(last) for name, last in labels.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s cannot be read; the last prompts in it are lost", path.name)
            return {}

    def _write(self, path: Path, image_id: str, labels: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_beside(path)
        try:
            part.write_text(json.dumps({"image": image_id, "labels": labels}), "utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self) -> None:
        if not self._folder.is_dir():
            return
        oldest_first = sorted(self._folder.glob("[0-9a-f]*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in oldest_first[: max(0, len(oldest_first) + 1 - self._keep)]:
            path.unlink()
