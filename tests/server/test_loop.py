"""What the housekeeping starts; starting itself is tested with the real server."""

from dataclasses import replace

import pytest

from lib.server.loop import Action, Situation, next_action, training_is_due

IDLE = Situation(
    training=False,
    scoring=False,
    auto_train=True,
    train_after=5,
    labelled=9,
    pending=0,
    may_start=True,
    unscored=(),
    tried=(),
)


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({}, None),
        ({"pending": 4}, None),
        ({"pending": 5}, "train"),
        ({"pending": 9, "scoring": True}, "train"),
        ({"pending": 5, "training": True}, None),
        ({"pending": 5, "auto_train": False}, None),
        ({"pending": 5, "may_start": False}, None),
        ({"unscored": ("a",)}, "score"),
        ({"unscored": ("a",), "pending": 5}, "train"),
        ({"unscored": ("a",), "pending": 5, "may_start": False}, "score"),
        ({"unscored": ("a",), "training": True}, None),
        ({"unscored": ("a",), "scoring": True}, None),
        ({"unscored": ("a",), "tried": ("a",)}, None),
        ({"unscored": ("a",), "tried": ("a", "b")}, "score"),
    ],
)
def test_what_is_started(change: dict[str, object], action: Action | None) -> None:
    assert next_action(replace(IDLE, **change)) == action


WAITING = replace(IDLE, pending=1, idle_after=20.0)


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({"idle_minutes": 19.9}, None),
        ({"idle_minutes": 20.0}, "train"),
        ({"idle_minutes": 20.0, "pending": 0}, None),
        ({"idle_minutes": 20.0, "idle_after": 0.0}, None),
        ({"idle_minutes": 20.0, "auto_train": False}, None),
        ({"idle_minutes": 20.0, "may_start": False}, None),
        ({"idle_minutes": 20.0, "labelled": 1}, None),
        ({"idle_minutes": 20.0, "training": True}, None),
        ({"idle_minutes": -300.0}, "train"),
    ],
)
def test_few_labels_are_learnt_when_nobody_saves_another(
    change: dict[str, object], action: Action | None
) -> None:
    assert next_action(replace(WAITING, **change)) == action


def test_due_says_what_will_be_started() -> None:
    assert training_is_due(replace(IDLE, pending=5))
    assert not training_is_due(replace(IDLE, pending=4))
    assert not training_is_due(replace(IDLE, pending=5, may_start=False))


def test_one_label_alone_starts_nothing() -> None:
    one = replace(IDLE, train_after=1, pending=1, labelled=1)
    assert next_action(one) is None
    assert next_action(replace(one, labelled=2)) == "train"
