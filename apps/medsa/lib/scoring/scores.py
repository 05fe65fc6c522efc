"""What scoring finds out about cases, as lines of JSON in one folder: any number of processes write, the server reads.

Each process appends to a file of its own; a case's newest line counts. A kill costs the line that was being written.

Concurrency. Between processes: appending and tidying up hold the file lock `scores.lock`; readers need none, since they
take whole lines only. Between a server's threads: what was read so far, guarded by a lock that is held while new lines
are read.
"""

import base64
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lib.files import flush, part_beside

log = logging.getLogger(__name__)

STORED = np.dtype("<f2")  # half precision, little endian
MOST_EXAMPLES = 3  # of cases that could not be scored
MOST_TRIES = 3  # of a case that fails for a reason which may pass, such as too little memory


@dataclass(frozen=True)
class LabelScore:
    """How sure the model is of one label in one case.

    `entropy` inside the predicted object and along its `border`, in bits; `disagreement` with what it says of the image
    changed a little, 0 to 1; `volume_mm3` as it expects it.
    """

    entropy: float
    border: float
    disagreement: float
    volume_mm3: float

    @property
    def uncertainty(self) -> float:
        """All three in one, 0 to 1."""
        return (self.entropy + self.border + self.disagreement) / 3.0


@dataclass(frozen=True)
class Stamp:
    """What scores are by: `model` names weights, labels and how images are shown, `view` all that embeddings rest on.

    Scores of one model can be compared, and embeddings of one view. Version numbers would not do: they begin anew where
    a state folder is emptied, and settings change without them.
    """

    model: str
    view: str


@dataclass(frozen=True)
class CaseScore:
    """What the version `adapter_version` of `base` says of one case, or why it could not be asked (`error`).

    `embedding` (d,) float32 describes the image, whatever the version is, empty where there is none; `slice_index` is
    where it is least sure. `image` is the signature of the file that was scored, `model` and `view` are the Stamp's.
    An image that is `unreadable` stays so; any other error may be one of the moment, `tries` counts them.
    """

    base: str
    adapter_version: int
    labels: Mapping[str, LabelScore] = field(default_factory=dict)
    embedding: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    slice_index: int | None = None
    seconds: float = 0.0
    error: str | None = None
    time: float = field(default_factory=time.time)
    image: str = ""
    model: str = ""
    view: str = ""
    unreadable: bool = False
    tries: int = 0

    @property
    def is_final(self) -> bool:
        """Whether the same model would say the same of the same file, as far as one can tell."""
        return self.error is None or self.unreadable or self.tries >= MOST_TRIES

    def describes(self, view: str, image: str) -> bool:
        """Whether the embedding is of that file, and can be compared with others of that view."""
        return (self.view, self.image) == (view, image) and self.embedding.size > 0

    @cached_property
    def uncertainty(self) -> float | None:
        """The mean over the labels; None for a case that could not be scored."""
        if not self.labels:
            return None
        return sum(one.uncertainty for one in self.labels.values()) / len(self.labels)

    def to_json(self, case: str) -> str:
        """One line."""
        content = {name: value for name, value in asdict(self).items() if name != "embedding"}
        content["embedding"] = base64.b64encode(self.embedding.astype(STORED).tobytes()).decode()
        return json.dumps({"case": case, **content})

    @classmethod
    def from_json(cls, line: str) -> tuple[str, "CaseScore"]:
        """(case, score); raises ValueError, KeyError or TypeError for anything else."""
        content = json.loads(line)
        case, stored = str(content.pop("case")), base64.b64decode(content.pop("embedding"))
        labels = {name: LabelScore(**one) for name, one in content.pop("labels").items()}
        embedding = np.frombuffer(stored, STORED).astype(np.float32)
        return case, cls(labels=labels, embedding=embedding, **content)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores by case id; never changed."""

    cases: Mapping[str, CaseScore]

    def is_current(self, case: str, model: str, image: str) -> bool:
        """Whether this model has scored this file of the case, or failed to for good."""
        entry = self.cases.get(case)
        return entry is not None and (entry.model, entry.image) == (model, image) and entry.is_final

    def is_described(self, case: str, view: str, image: str) -> bool:
        """Whether it is known what this file of the case is like, or that this cannot be known."""
        entry = self.cases.get(case)
        return entry is not None and (
            entry.describes(view, image)
            or (entry.error is not None and entry.is_final and entry.image == image)
        )

    @cached_property
    def unreadable(self) -> Mapping[str, str]:
        """Case -> signature of the file that could not be read."""
        return {case: entry.image for case, entry in self.cases.items() if entry.unreadable}

    def due(self, images: Mapping[str, str], model: str) -> list[str]:
        """The cases that this model has not scored yet, the most promising first; `images` are case -> signature.

        By what an earlier version was uncertain about; a case that none has seen counts as the middle of those.
        """
        missing = [case for case, image in images.items() if not self.is_current(case, model, image)]
        known = {
            case: entry.uncertainty
            for case in missing
            if (entry := self.cases.get(case)) is not None and entry.uncertainty is not None
        }
        middle = float(np.median(list(known.values()))) if known else 0.0
        # By hash, not by name: neighbours in a listing are often the same patient.
        return sorted(missing, key=lambda case: (-known.get(case, middle), stable_order(case)))


def stable_order(case: str) -> str:
    """Sorts cases in an order that has nothing to do with their names, and is always the same."""
    return hashlib.sha256(case.encode()).hexdigest()


def in_shard(case: str, shard: int, shards: int) -> bool:
    """Whether the case is for process `shard` of `shards`; each case is for one."""
    return int(stable_order(case)[:8], 16) % shards == shard


class ScoreFolder:
    """The folder; `shard` names this process's file."""

    def __init__(self, path: Path, shard: int = 0) -> None:
        self.path, self._shard = path, shard
        self._lock = threading.Lock()
        self._read_to: dict[str, tuple[int, int]] = {}  # file -> inode and bytes
        self._table = ScoreTable({})

    @property
    def pictures(self) -> Path:
        """Where the pictures of cases lie."""
        return self.path / "pictures"

    def picture(self, case: str) -> Path:
        """Of one case, whatever its id holds."""
        return self.pictures / f"{stable_order(case)[:32]}.png"

    def has_picture(self, case: str, image: str) -> bool:
        """Whether the picture is of the file with the signature `image`: not of one that had its name before."""
        entry = self.table().cases.get(case)
        return (
            entry is not None and (entry.error, entry.image) == (None, image) and self.picture(case).is_file()
        )

    def table(self) -> ScoreTable:
        """All scores on record now; the same object as long as nothing was added."""
        with self._lock:
            files = self._files()
            if files != self._read_to:
                self._catch_up(files)
            return self._table

    def append(self, case: str, entry: CaseScore) -> None:
        """Notes one score."""
        known = self.table().cases.get(case)
        if known is not None and known.time > entry.time:  # of a clock that was set back since
            entry = replace(entry, time=known.time)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._file_lock(), (self.path / f"part-{self._shard:03d}.jsonl").open("ab+") as stream:
            stream.seek(max(0, stream.tell() - 1))
            torn = stream.read(1) not in (b"", b"\n")  # a kill in the middle of a line
            stream.write((("\n" if torn else "") + entry.to_json(case) + "\n").encode())

    def tidy(self, known_now: Callable[[], Collection[str]]) -> None:
        """Rewrites the folder with one line for each known case; what others append meanwhile is not lost."""
        if not self.path.is_dir():
            return
        with self._file_lock():
            known = known_now()
            table, kept = self.table(), self.path / "part-000.jsonl"
            files = self._files()
            lines = [entry.to_json(case) for case, entry in sorted(table.cases.items()) if case in known]
            part = part_beside(kept)
            part.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            flush(part)
            part.replace(kept)
            for name in files.keys() - {kept.name}:
                (self.path / name).unlink()
        wanted = {self.picture(case).name for case in known}
        for picture in self.pictures.glob("*.png"):
            if picture.name not in wanted:
                picture.unlink(missing_ok=True)

    def _file_lock(self) -> FileLock:
        return FileLock(self.path / "scores.lock")

    def _files(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for path in sorted(self.path.glob("part-*.jsonl")):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # tidied up meanwhile: what it held is in the first file by now
            found[path.name] = (stat.st_ino, stat.st_size)
        return found

    def _catch_up(self, files: Mapping[str, tuple[int, int]]) -> None:
        """Reads what was added; everything where a file is another one or became shorter."""
        grown = self._read_to.keys() <= files.keys() and all(
            files[name][0] == inode and files[name][1] >= size
            for name, (inode, size) in self._read_to.items()
        )
        cases = dict(self._table.cases) if grown else {}
        read = dict(self._read_to) if grown else {}
        added = not grown
        for name, (inode, _) in files.items():
            start = read.get(name, (inode, 0))[1]
            whole = self._whole_lines(name, start)
            for line in whole.splitlines():
                _take(cases, line)
            added |= bool(whole)
            read[name] = (inode, start + len(whole))
        self._read_to = read
        if added:
            self._table = ScoreTable(cases)

    def _whole_lines(self, name: str, start: int) -> bytes:
        """What was added to a file since `start`, but for a line that is not complete."""
        try:
            with (self.path / name).open("rb") as stream:
                stream.seek(start)
                content = stream.read()
        except FileNotFoundError:
            return b""  # tidied up meanwhile; the next look finds it elsewhere
        return content[: content.rfind(b"\n") + 1]


def _take(cases: dict[str, CaseScore], line: bytes) -> None:
    try:
        case, entry = CaseScore.from_json(line.decode())
    except (ValueError, KeyError, TypeError, AttributeError):
        if line.strip():
            log.warning("a line of the scores cannot be read; its case is scored again")
        return
    if case not in cases or cases[case].time <= entry.time:
        cases[case] = entry


def progress_of(table: ScoreTable, images: Mapping[str, str], model: str) -> dict[str, Any]:
    """How far scoring is with the cases that matter, for people: {"scored", "of", "failed", "examples"}.

    `images` are case -> signature; `failed` is how many could not be scored, `examples` are the first of them with the
    reason.
    """
    current = [case for case, image in images.items() if table.is_current(case, model, image)]
    failed = sorted(case for case in current if table.cases[case].error is not None)
    examples = {case: table.cases[case].error for case in failed[:MOST_EXAMPLES]}
    return {
        "scored": len(current) - len(failed),
        "of": len(images),
        "failed": len(failed),
        "examples": examples,
    }
