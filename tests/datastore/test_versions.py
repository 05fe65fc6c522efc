"""Who saved what of a case, for those who work on the same one."""

import pytest

from lib.datastore.versions import final_versions, saved_by_others, seen_version
from lib.errors import InputError


def record(version: int, author: str, tag: str = "final") -> dict:
    return {
        "version": version,
        "author": author,
        "tag": tag,
        "saved": f"2026-01-0{version}",
        "adapter_version": 2,
        "params": {"a": 1},
    }


RECORDS = [
    record(1, "ann"),
    record(2, "bob", "original"),
    record(3, "bob"),
    record(4, "ann"),
    record(5, "carol"),
    record(6, "ann"),
]


def test_only_final_labels_count_and_nothing_else_of_them_is_told() -> None:
    shown = final_versions(RECORDS)
    assert [one["version"] for one in shown] == [1, 3, 4, 5, 6]
    assert shown[1] == {"version": 3, "author": "bob", "saved": "2026-01-03", "adapter_version": 2}


@pytest.mark.parametrize(
    ("seen", "version", "others"),
    [
        (0, 6, ["bob", "carol"]),
        (3, 6, ["carol"]),
        (4, 6, ["carol"]),
        (5, 6, []),
        (0, 4, ["bob"]),
        (None, 6, []),
    ],
)
def test_others_are_those_between_what_was_seen_and_ones_own(
    seen: int | None, version: int, others: list[str]
) -> None:
    assert [one["author"] for one in saved_by_others(RECORDS, "ann", seen, version)] == others


@pytest.mark.parametrize("wrong", ["3", 1.5, True, -1, [1]])
def test_a_seen_version_that_is_no_number_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="seen_version"):
        seen_version({"seen_version": wrong})


def test_a_client_may_say_nothing_of_what_it_has_seen() -> None:
    assert seen_version({}) is None
    assert seen_version({"seen_version": 0}) == 0
