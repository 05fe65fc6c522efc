"""What waits for training and for scoring, read from disk each time; only what did not change is remembered.

Shared between the housekeeping thread and the status route: the digests of unchanged files, guarded by one lock that is
not held while a file is read, and the entries, which are only replaced. Losing a race means doing the work twice.
"""

import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import AdapterError, NotFoundError
from lib.files import file_digest
from lib.scoring.survey import stamp_of
from lib.scoring.sweep import to_score
from lib.server.parts import Parts
from lib.trainers.medsa_trainer import FINAL
from lib.training.account import Entry, explain
from lib.training.ancestry import patients_in, seen_by
from lib.training.choice import grouping, obstacle
from lib.training.pending import pending_labels

Signature = tuple[int, int, int]


@dataclass(frozen=True)
class _Learned:
    """The cases that `champion` was trained on, and whom those of all trainings are of, as `records` say."""

    records: list[dict[str, Any]]
    champion: int
    cases: set[str]
    patients: dict[str, str]


class QueueView:
    """The queue of one app: `store` is its datastore."""

    def __init__(self, parts: Parts, store: Any) -> None:
        self._parts, self._store = parts, store
        self._lock = threading.Lock()
        self._digests: dict[Path, tuple[Signature, str]] = {}
        self._known: _Learned | None = None
        self._obstacle: tuple[tuple[_Learned, list[str], dict[str, str]], str | None] | None = None
        self._entries: tuple[list[dict[str, Any]], tuple[Entry, ...]] | None = None

    def pending(self) -> dict[str, str]:
        """Case id -> label digest of the labels that no finished training has seen, and a training could see now."""
        current = self.digests()
        return {
            case: current[case]
            for case in pending_labels(current, self.records())
            if self._store.is_available(case)
        }

    def newest(self, cases: Collection[str]) -> float | None:
        """When the newest of these labels was saved, in seconds since 1970, as its file says; None for no label."""
        times = []
        for case_id in cases:
            with suppress(OSError, NotFoundError):  # removed meanwhile
                times.append(Path(self._store.get_label_uri(case_id, FINAL)).stat().st_mtime)
        return max(times, default=None)

    def digests(self) -> dict[str, str]:
        """Case id -> label digest of all labels."""
        return {
            case_id: digest
            for case_id in sorted(self._store.get_labeled_images())
            if (digest := self._digest(Path(self._store.get_label_uri(case_id, FINAL)))) is not None
        }

    def labelled(self) -> int:
        """How many images have a final label."""
        return len(self._store.get_labeled_images())

    def obstacle(self) -> str | None:
        """Why no training on the labels that there are could publish anything, None where one could.

        What the files of the labels hold is not looked at.
        """
        past, cases, patients = self._learned(), self._store.get_labeled_images(), self._store.patients()
        asked, known = (past, cases, patients), self._obstacle
        # It is asked once a second, and by every page.
        if known is None or known[0][0] is not past or known[0][1:] != asked[1:]:
            settings = self._parts.settings
            group_of = grouping(settings.task.patient, {**past.patients, **patients})
            found = obstacle(cases, settings.training.validation_fraction, group_of, past.cases)
            known = self._obstacle = (asked, found)
        return known[1]

    def records(self) -> list[dict[str, Any]]:
        """The records of all runs, oldest first; not to be changed."""
        return self._parts.releases.records()

    def entries(self) -> tuple[Entry, ...]:
        """The same as people are told of them."""
        records, known = self.records(), self._entries
        if known is None or known[0] is not records:
            known = self._entries = (records, tuple(explain(record) for record in records))
        return known[1]

    def unscored(self) -> tuple[str, ...]:
        """Cases that are to be scored, in order; none before the model was loaded."""
        served = self._parts.serving.served
        if served is None:
            return ()
        stamp = stamp_of(served, tuple(self._parts.settings.task.labels))
        return tuple(to_score(self._store, self._parts.scores, stamp))

    def look_again(self) -> None:
        """Has the datastore list its images anew, where nobody tells it of a change, as on a network's share."""
        self._store.refresh()

    def _learned(self) -> "_Learned":
        records, champion, known = self.records(), 0, self._known
        with suppress(AdapterError):  # a training will say so
            champion = self._parts.releases.champion_version()
        if known is None or known.records is not records or known.champion != champion:
            cases, patients = seen_by(records, champion), patients_in(records)
            known = self._known = _Learned(records, champion, cases, patients)
        return known

    def _digest(self, label: Path) -> str | None:
        try:
            stat = label.stat()
            signature = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            with self._lock:
                known = self._digests.get(label)
            if known is not None and known[0] == signature:
                return known[1]
            digest = file_digest(label)
        except OSError:
            return None  # removed meanwhile
        with self._lock:
            self._digests[label] = (signature, digest)
        return digest
