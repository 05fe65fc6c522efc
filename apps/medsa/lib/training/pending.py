"""Which labels no finished training run has used yet; a pure function, so a restart loses no queue."""

from collections.abc import Mapping, Sequence
from typing import Any

FINISHED = ("published", "refused")


def pending_labels(current: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The case ids, in the order of `current`, whose label differs from what the last finished run saw.

    `current` maps case id to label digest; `records` are those of `Releases.records()`, oldest first. A case
    that the run skipped counts as seen: only a new version of its label makes it pending again. A run from the base
    that was refused is none of what serves: its labels are still to be learned on top of that.
    """
    finished = [
        record
        for record in records
        if record.get("decision") == "published"
        or (record.get("decision") == "refused" and record.get("start") != "base")
    ]
    seen: Mapping[str, str] = finished[-1].get("label_digests", {}) if finished else {}
    return [case_id for case_id, digest in current.items() if seen.get(case_id) != digest]
