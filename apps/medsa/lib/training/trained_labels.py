"""Which labels an adapter version has learned: those of the runs that led to it."""

from collections.abc import Iterable, Mapping
from typing import Any


def trained_labels(
    records: Iterable[Mapping[str, Any]], version: int, labels: Iterable[str]
) -> tuple[str, ...]:
    """Those of `labels` that occurred in a training case of `version` or of one it was trained on top of.

    All of them where a record on the way says nothing about it, as those of earlier releases of medsa do.
    """
    made = {
        record.get("version"): record
        for record in records
        if record.get("decision") == "published" and record.get("version") is not None
    }
    learned: set[str] = set()
    while version:
        names = made.get(version, {}).get("trained_labels")
        if names is None:
            return tuple(labels)
        learned.update(names)
        # Versions only count up; whatever else a record says would go in circles.
        version = min(int(made[version].get("champion") or 0), version - 1)
    return tuple(name for name in labels if name in learned)
