"""What waits for training and for scoring, read from disk each time; only what did not change is remembered.

Shared between the housekeeping thread and the status route: the digests and the records of unchanged
files, guarded by one lock that is not held while a file is read. Losing a race means reading a file twice.
"""

import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib.errors import NotFoundError
from lib.scoring.survey import stamp_of
from lib.scoring.sweep import to_score
from lib.server.parts import Parts
from lib.trainers.medsa_trainer import FINAL
from lib.training.cases import label_digest
from lib.training.pending import pending_labels

Signature = tuple[int, int, int]
RecordsSignature = tuple[int, int] | None
RECORDS = "runs.jsonl"


class QueueView:
    """The queue of one app: `store` is its datastore."""

    def __init__(self, parts: Parts, store: Any) -> None:
        self._parts, self._store = parts, store
        self._lock = threading.Lock()
        self._digests: dict[Path, tuple[Signature, str]] = {}
        self._records: tuple[RecordsSignature, list[dict[str, Any]]] | None = None

    def pending(self) -> dict[str, str]:
        """Case id -> label digest of the labels that no finished training has seen."""
        current = self.digests()
        return {case: current[case] for case in pending_labels(current, self.records())}

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

    def records(self) -> list[dict[str, Any]]:
        """The records of all runs, oldest first; not to be changed."""
        # Before the file is read: what is appended meanwhile changes the signature, so that it is read again.
        signature = self._records_signature()
        with self._lock:
            known = self._records
        if known is not None and known[0] == signature:
            return known[1]
        records = self._parts.releases.records()
        with self._lock:
            self._records = (signature, records)
        return records

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

    def _records_signature(self) -> RecordsSignature:
        try:
            stat = (self._parts.state / RECORDS).stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _digest(self, label: Path) -> str | None:
        try:
            stat = label.stat()
            signature = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            with self._lock:
                known = self._digests.get(label)
            if known is not None and known[0] == signature:
                return known[1]
            digest = label_digest(label)
        except OSError:
            return None  # removed meanwhile
        with self._lock:
            self._digests[label] = (signature, digest)
        return digest
