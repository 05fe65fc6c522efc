"""No two annotators are offered the same case."""

import json
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from lib.activelearning.leases import Leases
from lib.errors import InputError

CASES = ["a", "b", "c"]


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path / "state" / "leases.json", minutes=60)


def test_each_client_gets_another_case_and_keeps_it(leases: Leases) -> None:
    assert [leases.offer(client, lambda: CASES, 0) for client in ("ann", "bob")] == ["a", "b"]
    assert [leases.offer(client, lambda: ["c", "b", "a"], 1) for client in ("ann", "bob")] == ["a", "b"]


def test_none_is_left_for_a_fourth_client(leases: Leases) -> None:
    assert [leases.offer(f"client{n}", lambda: CASES, 0) for n in range(4)] == ["a", "b", "c", None]


def test_a_lease_runs_out(leases: Leases) -> None:
    assert leases.offer("ann", lambda: ["a"], 0) == "a"
    assert leases.offer("bob", lambda: ["a"], 3599) is None
    assert leases.offer("bob", lambda: ["a"], 3601) == "a"


def test_asking_again_extends_the_lease(leases: Leases) -> None:
    leases.offer("ann", lambda: ["a"], 0)
    leases.offer("ann", lambda: ["a"], 3000)
    assert leases.offer("bob", lambda: ["a"], 4000) is None


def test_work_on_a_case_extends_its_lease(leases: Leases) -> None:
    leases.offer("ann", lambda: ["a"], 0)
    leases.extend("a", 3000)
    leases.extend("unknown", 3000)
    assert leases.table() == {"a": {"client": "ann", "until": 6600}}
    assert leases.offer("bob", lambda: ["a"], 6000) is None
    leases.extend("a", 7000)
    assert leases.held(7000) == set(), "it was over by then"


def test_a_click_writes_once_a_minute_and_waits_for_nobody(leases: Leases, tmp_path: Path) -> None:
    leases.offer("ann", lambda: ["a"], 0)
    leases.extend("a", 100)
    leases.extend("a", 130)
    assert leases.table()["a"]["until"] == 3700
    with FileLock(tmp_path / "state" / "leases.lock"):
        leases.extend("a", 200)
    assert leases.table()["a"]["until"] == 3700
    leases.extend("a", 210)
    assert leases.table()["a"]["until"] == 3810
    assert leases.held(3809) == {"a"}


def test_a_full_disk_spoils_no_click(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    leases.offer("ann", lambda: ["a"], 0)

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.activelearning.leases.write_json", full)
    leases.extend("a", 100)
    monkeypatch.undo()
    leases.extend("a", 101)
    assert leases.table()["a"]["until"] == 3701


def test_short_leases_are_kept_by_clicks_too(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "leases.json", minutes=0.5)
    leases.offer("ann", lambda: ["a"], 0)
    for now in range(10, 100, 10):
        leases.extend("a", now)
    assert leases.held(100) == {"a"}


def test_a_labelled_case_is_not_offered_again(leases: Leases) -> None:
    leases.offer("ann", lambda: CASES, 0)
    assert leases.offer("ann", lambda: ["b", "c"], 1) == "b"
    assert set(leases.table()) == {"b"}


def test_a_case_labelled_while_one_waited_is_not_offered(leases: Leases) -> None:
    unlabelled = list(CASES)
    first_is_inside, second_asked, offered = threading.Event(), threading.Event(), []

    def label_the_first() -> list[str]:
        first_is_inside.set()
        second_asked.wait(timeout=60)
        unlabelled.remove("a")
        return list(unlabelled)

    def ask_second() -> None:
        second_asked.set()
        offered.append(leases.offer("bob", lambda: list(unlabelled), 0))

    first = threading.Thread(target=lambda: leases.offer("ann", label_the_first, 0))
    first.start()
    assert first_is_inside.wait(timeout=60)
    second = threading.Thread(target=ask_second)
    second.start()
    first.join()
    second.join()
    assert offered == ["c"]


def test_release(leases: Leases) -> None:
    leases.offer("ann", lambda: CASES, 0)
    leases.release("a")
    leases.release("unknown")
    assert leases.offer("bob", lambda: CASES, 1) == "a"


def test_a_case_that_is_given_back_goes_to_others_at_once_and_not_to_who_gave_it(leases: Leases) -> None:
    leases.offer("ann", lambda: CASES, 0)
    leases.give_back("a", "ann", 1)
    assert leases.offer("ann", lambda: CASES, 2) == "b"
    assert leases.offer("bob", lambda: CASES, 3) == "a"


def test_what_was_given_back_comes_again_when_nothing_else_is_left_or_time_is_over(leases: Leases) -> None:
    leases.offer("ann", lambda: ["a"], 0)
    leases.give_back("a", "ann", 1)
    assert leases.offer("ann", lambda: ["a"], 2) == "a"
    leases.give_back("a", "ann", 3)
    assert leases.offer("ann", lambda: CASES, 3604) == "a"


def test_of_what_was_given_back_the_oldest_comes_first(leases: Leases) -> None:
    given = []
    for now in range(6):
        case = leases.offer("ann", lambda: ["a", "b"], now)
        assert case is not None
        given.append(case)
        leases.give_back(case, "ann", now)
    assert given == ["a", "b", "a", "b", "a", "b"]


def test_what_somebody_else_has_cannot_be_given_back(leases: Leases) -> None:
    leases.offer("ann", lambda: CASES, 0)
    with pytest.raises(InputError, match=r"client_id: 'bob' .* to whom a is offered"):
        leases.give_back("a", "bob", 1)
    assert set(leases.table()) == {"a"}
    leases.give_back("a", "bob", 3601)  # over by then, and nobody else's


def test_what_was_given_back_is_remembered_over_a_restart_and_forgotten_with_its_label(
    leases: Leases, tmp_path: Path
) -> None:
    leases.offer("ann", lambda: CASES, 0)
    leases.give_back("a", "ann", 1)
    again = Leases(tmp_path / "state" / "leases.json", minutes=60)
    assert again.offer("ann", lambda: CASES, 2) == "b"
    again.offer("bob", lambda: ["b", "c"], 3)
    assert json.loads((tmp_path / "state" / "leases.json").read_text())["skipped"] == {}


def test_leases_outlast_a_restart(leases: Leases, tmp_path: Path) -> None:
    leases.offer("ann", lambda: CASES, 0)
    assert Leases(tmp_path / "state" / "leases.json", minutes=60).offer("bob", lambda: CASES, 1) == "b"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"a": 1}',
        '{"leases": {"a": {"client": "ann"}}, "skipped": {}}',
        '{"leases": {}, "skipped": []}',
    ],
)
def test_an_unreadable_file_ends_all_leases(leases: Leases, tmp_path: Path, content: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "leases.json").write_text(content)
    assert leases.offer("bob", lambda: CASES, 0) == "a"
    assert json.loads((tmp_path / "state" / "leases.json").read_text())["leases"]["a"]["client"] == "bob"


def test_clients_that_ask_at_once_get_different_cases(leases: Leases) -> None:
    cases = [f"case{n}" for n in range(12)]
    offered: list[str | None] = []
    threads = [
        threading.Thread(target=lambda n=n: offered.append(leases.offer(f"client{n}", lambda: cases, 0)))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(case) for case in offered) == sorted(cases)
