"""What the records say about the version that serves: what it has seen, what it knows, how it did."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lib.training.lineage import made_versions
from lib.training.validation import CLICKS, ObjectScore

Records = Iterable[Mapping[str, Any]]


def made_by(records: Records, version: int) -> list[Mapping[str, Any]]:
    """The records of the runs that led to `version`, newest first.

    Its own, and those of what it was trained on top of.
    """
    return _way(records, version)[0]


def _way(records: Records, version: int) -> tuple[list[Mapping[str, Any]], bool]:
    """The same, and whether it goes back all the way to the base."""
    made = made_versions(records)
    found: list[Mapping[str, Any]] = []
    while version and version in made:
        record = made[version]
        found.append(record)
        # Versions only count up; whatever else a record says would go in circles.
        before = min(int(record.get("champion") or 0), version - 1)
        version = 0 if record.get("start") == "base" else before
    return found, version == 0


def seen_by(records: Records, version: int) -> set[str]:
    """The cases that `version` was trained on, by whichever run."""
    return {case for record in made_by(records, version) for case in record.get("trained", ())}


def patients_in(records: Records) -> dict[str, str]:
    """Whom the cases that were trained on are of, as the datastore said then: they may be gone from it by now."""
    return {case: patient for record in records for case, patient in record.get("patients", {}).items()}


def trained_labels(records: Records, version: int, labels: Iterable[str]) -> tuple[str, ...]:
    """Those of `labels` that occurred in a training case of `version` or of one it was trained on top of.

    All of them where a record on the way says nothing about it, as those of earlier releases of medsa do, or is
    not there.
    """
    way, complete = _way(records, version)
    if not complete or any(record.get("trained_labels") is None for record in way):
        return tuple(labels)
    learned = {name for record in way for name in record["trained_labels"]}
    return tuple(name for name in labels if name in learned)


def known_scores(
    records: Records, version: int, labels: Mapping[str, str], images: Mapping[str, str], scoring: str
) -> list[ObjectScore]:
    """How `version` did when it was published, where asking again would give the same.

    That is on the cases that validated then, with the same labels and images (digests by case), shown and computed in
    the same way (`scoring`).
    """
    own = made_by(records, version)[:1]
    if not own or own[0].get("scoring") != scoring:
        return []
    record = own[0]
    then = [record.get(key, {}) for key in ("label_digests", "image_digests")]
    same = {
        case
        for case in record.get("validated", ())
        if case in images and [labels.get(case), images[case]] == [digests.get(case) for digests in then]
    }
    return _objects(record.get("scores", {}).get("candidate", ()), same)


def _objects(stored: Sequence[Mapping[str, Any]], cases: set[str]) -> list[ObjectScore]:
    return [
        ObjectScore(one["case_id"], one["label"], tuple(one["clicks"]), one["automatic"])
        for one in stored
        if one["case_id"] in cases and len(one["clicks"]) == CLICKS
    ]
