"""Who saved which label of a case: for people who work on the same one, and must hear of each other."""

from collections.abc import Iterable, Mapping
from typing import Any

from lib.errors import InputError

FINAL = "final"
SHOWN = ("version", "author", "saved", "adapter_version")


def final_versions(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Number, author, time (ISO 8601, UTC) and adapter version of each final label, oldest first.

    `records` are those of `LabelHistory.versions`.
    """
    return [{key: record.get(key) for key in SHOWN} for record in records if record.get("tag") == FINAL]


def seen_version(params: Mapping[str, Any]) -> int | None:
    """The newest version that a client knew of when it sent its own; None for one that does not say.

    Raises InputError for what is no number.
    """
    seen = params.get("seen_version")
    if seen is not None and (not isinstance(seen, int) or isinstance(seen, bool) or seen < 0):
        raise InputError(
            "seen_version", seen, "the number of the newest version that you know of, 0 for none"
        )
    return seen


def saved_by_others(
    records: Iterable[Mapping[str, Any]], author: str, seen: int | None, version: int
) -> list[dict[str, Any]]:
    """The final versions of other authors between the one that was `seen` and one's own `version`."""
    if seen is None:
        return []
    return [
        one for one in final_versions(records) if seen < one["version"] < version and one["author"] != author
    ]
