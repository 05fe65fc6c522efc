"""What the records tell of versions: which were made, which serve after which, which were pruned. Pure functions.

Records are read tolerantly: those of older medsa lack fields.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

ROLLED_BACK, PRUNED = "rolled back", "pruned"

Record = Mapping[str, Any]


def publishes(record: Record) -> bool:
    """Whether `record` is of a run that made a version."""
    return is_whole(record.get("version")) and record.get("decision") not in (ROLLED_BACK, PRUNED)


def made_versions(records: Iterable[Record]) -> dict[int, Record]:
    """The record of the run that made it, by version."""
    return {record["version"]: record for record in records if publishes(record)}


def pruned_versions(records: Iterable[Record]) -> dict[int, str]:
    """When the weights were removed (the time as recorded), by version."""
    return {
        version: str(record.get("time", ""))
        for record in records
        if record.get("decision") == PRUNED
        for version in numbers_of(record)
    }


def highest_number(records: Iterable[Record]) -> int:
    """The highest version that any record speaks of, 0 for none: a number is never given twice."""
    return max((number for record in records for number in numbers_of(record)), default=0)


def served_before(records: Sequence[Record], version: int) -> int:
    """The version that served when `version` was published; 0, the base, where no record tells."""
    serving = 0
    for record in records:
        if publishes(record) and record["version"] == version:
            parent = record.get("champion")
            if not isinstance(parent, int):
                parent = serving
            # Numbers only count up; whatever else a record says would go in circles.
            return min(parent, version - 1)
        if record.get("decision") != PRUNED and is_whole(record.get("version")):
            serving = record["version"]
    return 0


def fallback(records: Sequence[Record], champion: int, kept: Collection[int]) -> int:
    """Where a rollback from `champion` goes: to what served before it, and on back until a version is in `kept`.

    `kept` always has 0. Rolling back twice goes two versions back, and not to and fro.
    """
    version = served_before(records, champion)
    while version not in kept and version > 0:
        version = served_before(records, version)
    return max(version, 0)


def prunable(versions: Collection[int], keep: int, needed: Collection[int]) -> list[int]:
    """All but the newest `keep` of `versions` and those in `needed`, rising; 0, the base, is no version to remove."""
    numbered = sorted(version for version in versions if version)
    return [version for version in numbered[: max(0, len(numbered) - keep)] if version not in needed]


def numbers_of(record: Record) -> list[int]:
    """The version that a record is of, and those that it says were pruned."""
    several = record.get("versions")
    listed = several if isinstance(several, list | tuple) else ()
    return [value for value in (record.get("version"), *listed) if is_whole(value)]


def is_whole(value: Any) -> bool:
    """Whether it is an integer: JSON's true is one to Python, but no version."""
    return isinstance(value, int) and not isinstance(value, bool)
