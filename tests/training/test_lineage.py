"""What the records tell of versions; records of older medsa lack fields."""

from typing import Any

import pytest

from lib.training.lineage import (
    fallback,
    highest_number,
    made_versions,
    prunable,
    pruned_versions,
    served_before,
)


def made(version: int, champion: int | None = None) -> dict[str, Any]:
    record: dict[str, Any] = {"decision": "published", "version": version}
    return record if champion is None else {**record, "champion": champion}


def back(version: int) -> dict[str, Any]:
    return {"decision": "rolled back", "version": version}


@pytest.mark.parametrize(
    ("records", "version", "before"),
    [
        ([], 0, 0),
        ([], 3, 0),
        ([made(1, 0)], 1, 0),
        ([made(1, 0), made(2, 1)], 2, 1),
        ([made(1, 0), made(2, 1), back(1), made(3, 1)], 3, 1),
        ([made(1), made(2), back(1), made(3)], 3, 1),  # without the field, what served last
        ([made(1), {"decision": "pruned", "version": None, "versions": [1]}, made(2)], 2, 1),
        ([made(1, 0), made(2, 7)], 2, 1),  # no circles
    ],
)
def test_what_served_before(records: list[dict[str, Any]], version: int, before: int) -> None:
    assert served_before(records, version) == before


def test_the_fallback_leaves_out_what_is_not_kept() -> None:
    records = [made(1, 0), made(2, 1), made(3, 2)]
    assert fallback(records, 3, {0, 1, 2, 3}) == 2
    assert fallback(records, 3, {0, 1, 3}) == 1
    assert fallback(records, 3, {0, 3}) == 0


def test_what_is_pruned() -> None:
    assert prunable([0, 1, 2, 3, 4], 2, {4, 1}) == [2]
    assert prunable([0, 1, 2], 5, ()) == []
    assert prunable([0], 1, {0}) == []


def test_odd_records_are_no_versions() -> None:
    odd = [{}, {"version": None}, {"version": True}, {"version": "2"}, {"versions": None}, {"versions": "12"}]
    assert made_versions(odd) == {}
    assert highest_number([*odd, made(2), {"decision": "pruned", "versions": [5, "x"]}]) == 5
    assert pruned_versions([{"decision": "pruned", "versions": [1]}, made(2)]) == {1: ""}
