"""How often the same queue is started."""

from pathlib import Path

import pytest

from lib.server.attempts import Attempts

QUEUE = {"a": "digest1", "b": "digest2"}


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path / "state" / "attempts.json")


def test_two_failures_for_one_queue(attempts: Attempts) -> None:
    allowed = []
    for _ in range(3):
        allowed.append(attempts.may_start(QUEUE))
        attempts.note_start(QUEUE)
        attempts.note_failure(QUEUE)
    assert allowed == [True, True, False]


def test_runs_that_end_with_their_server_are_tried_more_often_and_not_for_ever(attempts: Attempts) -> None:
    allowed = []
    for _ in range(8):
        allowed.append(attempts.may_start(QUEUE))
        attempts.note_start(QUEUE)
    assert allowed == [True] * 6 + [False] * 2


def test_a_start_that_a_person_took_the_place_of_does_not_count(attempts: Attempts) -> None:
    for _ in range(20):
        assert attempts.may_start(QUEUE)
        attempts.note_start(QUEUE)
        attempts.take_back_start(QUEUE)
    attempts.take_back_start(QUEUE)
    attempts.note_failure(QUEUE)
    attempts.note_failure(QUEUE)
    attempts.take_back_start(QUEUE)
    assert not attempts.may_start(QUEUE), "failures stay"


def test_another_label_is_another_queue(attempts: Attempts) -> None:
    attempts.note_stop(QUEUE)
    assert not attempts.may_start(dict(reversed(QUEUE.items())))
    assert attempts.may_start({**QUEUE, "c": "digest3"})
    assert attempts.may_start({**QUEUE, "a": "changed"})


def test_a_restart_knows_the_failures(attempts: Attempts, tmp_path: Path) -> None:
    attempts.note_failure(QUEUE)
    attempts.note_failure(QUEUE)
    assert not Attempts(tmp_path / "state" / "attempts.json").may_start(QUEUE)


@pytest.mark.parametrize("content", ["", "[]", '{"queue": 1}'])
def test_an_unreadable_file_counts_as_none(attempts: Attempts, tmp_path: Path, content: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "attempts.json").write_text(content)
    assert attempts.may_start(QUEUE)
