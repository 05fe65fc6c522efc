"""Which adapter versions there are, and which serves: the only writer of `champion.json` and `runs.jsonl`.

    state/releases/v0001/   one adapter folder per published version, never changed afterwards
    state/releases/v0001.json   the record of the run that made it, complete before the folder appears
    state/releases/.tmp-*   an adapter being written or removed; left over only by a kill
    state/releases/pruning.json   what is being pruned; left over only by a kill, and finished by the next writer
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

from lib.errors import AdapterError, InputError, NotFoundError
from lib.files import flush, remove_parts_of, write_json
from lib.model.adapter_io import AdapterConfig, read_adapter_config
from lib.training.lineage import (
    PRUNED,
    ROLLED_BACK,
    fallback,
    highest_number,
    is_whole,
    made_versions,
    numbers_of,
    prunable,
    pruned_versions,
)

log = logging.getLogger(__name__)

POINTER = "champion.json"


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
        self._pruning = self._folder / "pruning.json"
        self._lock = FileLock(root / "releases.lock")
        # What the file held when it was read last; only ever replaced, so that threads need no lock.
        self._read: tuple[tuple[int, int, int], list[dict[str, Any]]] | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the writers' lock, e.g. from a look at the champion to the publishing that replaces it."""
        self._root.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._append_missing()
            self._finish_pruning()
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
        """That version, None for 0, the base; raises NotFoundError when there is none, or its weights were pruned."""
        versions = self.versions()
        if version not in versions:
            raise NotFoundError("version", version, f"one of {versions}{self._pruned_text(version)}")
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
            version = max(self.versions()[-1], highest_number(self._lines())) + 1
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

    def rollback(self, version: int | None, now: str, by: str | None = None) -> Release | None:
        """Lets `version` serve again (0: the base; None: `rollback_target`) and records it with the time `now`.

        `by` is who asked for it. Raises NotFoundError when there is no such version, its weights were pruned, or none
        served before.
        """
        self._target(version)  # what cannot be done leaves no state folder behind
        with self.writing():
            version = self._target(version)
            before = self._readable_version()
            self._point_to(version)
            self._append(
                {"decision": ROLLED_BACK, "time": now, "champion": before, "version": version} | _who(by)
            )
        return self.champion()

    def rollback_target(self) -> int:
        """The version that served before the champion was published, or an earlier one where that was pruned.

        Raises NotFoundError while the base serves, AdapterError when the pointer is unreadable.
        """
        champion, versions = self.champion_version(), self.versions()
        if champion == 0:
            raise NotFoundError("version", None, f"one of {versions}; the base serves, nothing did before it")
        return fallback(self.records(), champion, versions)

    def prune(self, keep: int, now: str, by: str | None = None) -> list[int]:
        """Removes the weights of all but the newest `keep` versions, and returns which; records stay.

        The champion and the one that a rollback would go to are kept whatever their age. Raises InputError for a
        `keep` below 1, AdapterError when the pointer is unreadable.
        """
        if not is_whole(keep) or keep < 1:
            raise InputError("keep", keep, "a number of versions, at least 1")
        with self.writing():
            champion, versions = self.champion_version(), self.versions()
            needed = {champion, fallback(self.records(), champion, versions)}
            doomed = prunable(versions, keep, needed)
            if doomed:
                record = {
                    "decision": PRUNED,
                    "time": now,
                    "champion": champion,
                    "versions": doomed,
                    "keep": keep,
                }
                write_json(self._pruning, record | _who(by))
                self._finish_pruning()
        return doomed

    def record_of(self, version: int) -> dict[str, Any] | None:
        """The record of the run that made `version`, also where a kill kept it out of `records`; None for none."""
        found = made_versions(self.records()).get(version)
        return self._beside(version) if found is None else dict(found)

    def records(self) -> list[dict[str, Any]]:
        """All records, oldest first, without those that a kill cut off; not to be changed.

        The same object as long as there is no other one: after some months of trainings the file has megabytes.
        """
        records = self._lines()
        missing = self._missing(records)
        return records if missing is None else [*records, missing]

    def clean(self) -> None:
        """Removes what killed writers left behind. Only while `writing()`: a living one may be at it."""
        for leftover in self._folder.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self._folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)
        remove_parts_of(self._pointer)
        made = made_versions(self._lines())
        for path in self._folder.glob("v*.json"):
            number = path.stem.removeprefix("v")
            # Written just before the folder got its name, which then it never did.
            if number.isdecimal() and int(number) not in made and not path.with_suffix("").exists():
                path.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            # Before it is read: what is appended meanwhile changes it, so that it is read again.
            stat = self._records.stat()
            signature = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            known = self._read
            if known is not None and known[0] == signature:
                return known[1]
            text = self._records.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return []
        lines = [record for line in text.splitlines() if (record := _parse(line)) is not None]
        self._read = (signature, lines)
        return lines

    def _missing(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The record of the serving version, if a kill kept it out of `records`."""
        version = self._readable_version()
        if not version or version in made_versions(records):
            return None
        return self._beside(version)

    def _beside(self, version: int) -> dict[str, Any] | None:
        try:
            return _parse(self._record_beside(version).read_text("utf-8"))
        except OSError:
            return None

    def _append_missing(self) -> None:
        missing = self._missing(self._lines())
        if missing is not None:
            self._append(missing)

    def _target(self, version: int | None) -> int:
        found = self.rollback_target() if version is None else version
        self.release(found)
        return found

    def _finish_pruning(self) -> None:
        """Does what `pruning.json` says, if it is there; doing it twice changes nothing."""
        try:
            record = _parse(self._pruning.read_text("utf-8"))
        except FileNotFoundError:
            return
        if record is not None:
            for version in numbers_of(record):
                self._remove(version)
            if record not in self._lines():
                self._append(record)
        self._pruning.unlink()

    def _remove(self, version: int) -> None:
        # Renamed first: a folder under a version's name is always whole.
        folder = self._version_folder(version)
        if folder.is_dir():
            doomed = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self._folder)) / folder.name
            os.rename(folder, doomed)
            flush(self._folder)
            shutil.rmtree(doomed.parent, ignore_errors=True)

    def _pruned_text(self, version: int) -> str:
        time = pruned_versions(self.records()).get(version)
        return "" if time is None else f"; the weights of version {version} were pruned on {time}"

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


def _who(by: str | None) -> dict[str, str]:
    return {} if by is None else {"by": by}


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
