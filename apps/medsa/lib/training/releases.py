"""Which adapter versions there are, and which serves: the only writer of `champion.json` and `runs.jsonl`.

    state/releases/v0001/   one adapter folder per published version, never changed afterwards
    state/releases/v0001.json   the record of the run that made it, complete before the folder appears
    state/releases/.tmp-*   an adapter being written; left over only by a killed run
    state/champion.json     {"version": n}; absent or 0: the base without adapter serves
    state/runs.jsonl        one record a line, oldest first

Shared between processes: the server reads, training publishes, the command line rolls back. Writers hold the
file lock `state/releases.lock` (reentrant within one `Releases`), readers need none: a folder appears by
rename, the pointer by replace, a record by one append. A kill between these steps leaves a folder that nothing
points to, or a version that serves before its record is in `runs.jsonl`. Then `records` takes it from beside the
folder, and the next writer appends it.
"""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lib.errors import AdapterError, NotFoundError
from lib.files import flush, write_json
from lib.model.adapter_io import AdapterConfig, read_adapter_config

log = logging.getLogger(__name__)

POINTER = "champion.json"
ROLLED_BACK = "rolled back"


@dataclass(frozen=True)
class Release:
    """One published adapter version; versions count from 1, and 0 means the base without adapter."""

    version: int
    folder: Path

    @property
    def config(self) -> AdapterConfig:
        """What the adapter was made for; raises AdapterError when its folder is damaged."""
        return read_adapter_config(self.folder)


class Releases:
    """The releases under one state folder. `root` is the state folder; it is made at the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "releases"
        self._pointer = root / POINTER
        self._records = root / "runs.jsonl"
        self._lock = FileLock(root / "releases.lock")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the writers' lock, e.g. from a look at the champion to the publishing that replaces it."""
        self._root.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._append_missing()
            yield

    def champion_version(self) -> int:
        """The serving version, 0 for the base; raises AdapterError when the pointer is unreadable."""
        try:
            return int(json.loads(self._pointer.read_text("utf-8"))["version"])
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError) as error:
            raise AdapterError(f"{POINTER} names no version ({error}); roll back to one") from error

    def champion(self) -> Release | None:
        """The serving release, None for the base; raises AdapterError when its folder is gone."""
        version = self.champion_version()
        if version == 0:
            return None
        folder = self._version_folder(version)
        if not folder.is_dir():
            raise AdapterError(
                f"the serving version {version} has no folder; roll back to one of {self.versions()}"
            )
        return Release(version, folder)

    def release(self, version: int) -> Release | None:
        """That version, None for 0, the base; raises NotFoundError when there is no such version."""
        if version not in self.versions():
            raise NotFoundError("version", version, f"one of {self.versions()}")
        return Release(version, self._version_folder(version)) if version else None

    def versions(self) -> list[int]:
        """All versions there are, rising; 0, the base, is always among them."""
        if not self._folder.is_dir():
            return [0]
        matches = (re.fullmatch(r"v(\d{4,})", entry.name) for entry in self._folder.iterdir())
        return sorted({0, *(int(match[1]) for match in matches if match)})

    def publish(self, write: Callable[[Path], None], record: Mapping[str, Any]) -> Release:
        """Lets what `write(folder)` writes serve as the next version; appends `record` with its number."""
        with self.writing():
            self.clean()
            version = self.versions()[-1] + 1
            target = self._version_folder(version)
            self._folder.mkdir(exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self._folder))
            write(building)
            building.chmod(0o755)
            _flush_tree(building)
            record = {**record, "version": version}
            write_json(self._record_beside(version), record)
            os.rename(building, target)
            flush(self._folder)
            self._point_to(version)
            self._append(record)
        return Release(version, target)

    def record(self, record: Mapping[str, Any]) -> None:
        """Appends a record that changes nothing: a refused or failed run."""
        with self.writing():
            self._append(record)

    def rollback(self, version: int, now: str) -> Release | None:
        """Lets `version` serve again (0: the base) and records it with the time `now`.

        Raises NotFoundError when there is no such version.
        """
        if version not in self.versions():
            raise NotFoundError("version", version, f"one of {self.versions()}")
        with self.writing():
            before = self._readable_version()
            self._point_to(version)
            self._append({"decision": ROLLED_BACK, "time": now, "champion": before, "version": version})
        return self.champion()

    def records(self) -> list[dict[str, Any]]:
        """All records, oldest first, without those that a kill cut off."""
        records = self._lines()
        missing = self._missing(records)
        return records if missing is None else [*records, missing]

    def clean(self) -> None:
        """Removes what killed runs left behind."""
        for leftover in self._folder.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self._folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            text = self._records.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [record for line in text.splitlines() if (record := _parse(line)) is not None]

    def _missing(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The record of the serving version, if a kill kept it out of `records`."""
        version = self._readable_version()
        if not version or any(_publishes(record, version) for record in records):
            return None
        try:
            return _parse(self._record_beside(version).read_text("utf-8"))
        except OSError:
            return None

    def _append_missing(self) -> None:
        missing = self._missing(self._lines())
        if missing is not None:
            self._append(missing)

    def _record_beside(self, version: int) -> Path:
        # Beside the folder: a record names cases, and an adapter folder is made to be passed on.
        return self._folder / f"v{version:04d}.json"

    def _version_folder(self, version: int) -> Path:
        return self._folder / f"v{version:04d}"

    def _readable_version(self) -> int | None:
        try:
            return self.champion_version()
        except AdapterError:
            return None

    def _point_to(self, version: int) -> None:
        write_json(self._pointer, {"version": version})

    def _append(self, record: Mapping[str, Any]) -> None:
        line = (json.dumps(record) + "\n").encode("utf-8")
        with self._records.open("ab+") as stream:
            end = stream.seek(0, os.SEEK_END)
            if end:
                stream.seek(end - 1)
                if stream.read(1) != b"\n":
                    line = (
                        b"\n" + line
                    )  # an earlier append was cut off; keep its remainder from spoiling this line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())


def _publishes(record: Mapping[str, Any], version: int) -> bool:
    return record.get("version") == version and record.get("decision") != ROLLED_BACK


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        log.debug("a record is cut off and left out")
        return None
    return record


def _flush_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush(path)
