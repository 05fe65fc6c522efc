"""What the records say about a version."""

from typing import Any

import pytest

from lib.training.ancestry import known_scores, made_by, seen_by, trained_labels
from lib.training.validation import ObjectScore

LABELS = ("liver", "spleen", "kidney")


def published(version: int, champion: int, *names: str, **more: Any) -> dict[str, Any]:
    made = {"decision": "published", "version": version, "champion": champion, "trained_labels": list(names)}
    return {**made, **more}


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


def test_a_version_trained_from_the_base_knows_only_what_its_own_run_taught() -> None:
    records = [
        published(1, 0, "kidney", trained=["a"]),
        published(2, 1, "liver", trained=["b"], start="base"),
    ]
    assert trained_labels(records, 2, LABELS) == ("liver",)
    assert seen_by(records, 2) == {"b"}
    assert [record["version"] for record in made_by(records, 2)] == [2]


def test_a_version_has_seen_what_it_was_trained_on_top_of() -> None:
    records = [
        published(1, 0, trained=["a"]),
        {"decision": "refused", "champion": 1, "trained": ["c"]},
        published(2, 1, trained=["a", "b"]),
    ]
    assert seen_by(records, 2) == {"a", "b"}
    assert seen_by(records, 0) == set()


SCORE = {"case_id": "a", "label": "liver", "clicks": [0.1, 0.2, 0.3, 0.4, 0.5], "automatic": 0.6}
FACTS: dict[str, Any] = {
    "validated": ["a"],
    "label_digests": {"a": "1"},
    "image_digests": {"a": "i"},
    "scores": {"candidate": [SCORE]},
    "scoring": "v",
}


def test_what_a_version_did_when_it_was_published_is_known() -> None:
    records = [published(1, 0, **FACTS)]
    expected = [ObjectScore("a", "liver", (0.1, 0.2, 0.3, 0.4, 0.5), 0.6)]
    assert known_scores(records, 1, {"a": "1"}, {"a": "i"}, "v") == expected


@pytest.mark.parametrize(
    ("changes", "digest", "image", "scoring"),
    [
        ({}, "2", "i", "v"),
        ({}, "1", "j", "v"),
        ({}, "1", "i", "other"),
        ({"scoring": ""}, "1", "i", "v"),
        ({"validated": []}, "1", "i", "v"),
        ({"image_digests": {}}, "1", "i", "v"),
        ({"scores": {"candidate": [{**SCORE, "clicks": [0.1, 0.2]}]}}, "1", "i", "v"),
        ({"scores": {}}, "1", "i", "v"),
    ],
)
def test_what_may_have_changed_is_asked_again(
    changes: dict[str, Any], digest: str, image: str, scoring: str
) -> None:
    records = [published(1, 0, **{**FACTS, **changes})]
    assert known_scores(records, 1, {"a": digest}, {"a": image}, scoring) == []


def test_of_the_base_nothing_is_known() -> None:
    assert known_scores([published(1, 0, **FACTS)], 0, {"a": "1"}, {"a": "i"}, "v") == []
