"""What a version has learned, from the records of the runs."""

from typing import Any

import pytest

from lib.training.trained_labels import trained_labels

LABELS = ("liver", "spleen", "kidney")


def published(version: int, champion: int, *names: str) -> dict[str, Any]:
    return {"decision": "published", "version": version, "champion": champion, "trained_labels": list(names)}


def test_the_runs_that_led_to_a_version_count_together() -> None:
    records = [
        published(1, 0, "kidney"),
        {"decision": "refused", "champion": 1, "trained_labels": ["spleen"]},
        {"decision": "rolled back", "version": 0, "champion": 1},
        published(2, 0, "spleen"),
        published(3, 1, "liver"),
    ]
    assert trained_labels(records, 3, LABELS) == ("liver", "kidney")
    assert trained_labels(records, 2, LABELS) == ("spleen",)
    assert trained_labels(records, 0, LABELS) == ()


@pytest.mark.parametrize("records", [[], [{"decision": "published", "version": 1, "champion": 0}]])
def test_where_nothing_is_said_it_may_be_all(records: list[dict[str, Any]]) -> None:
    assert trained_labels(records, 1, LABELS) == LABELS
    assert trained_labels([*records, published(2, 1, "liver")], 2, LABELS) == LABELS


def test_a_label_that_the_task_no_longer_has_is_left_out() -> None:
    assert trained_labels([published(1, 0, "liver", "heart")], 1, LABELS) == ("liver",)


def test_records_that_go_in_circles_come_to_an_end() -> None:
    assert trained_labels([published(1, 1, "liver")], 1, LABELS) == ("liver",)
