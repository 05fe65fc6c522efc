"""No two annotators are offered the same case."""

import json
import threading
from pathlib import Path

import pytest

from lib.activelearning.leases import Leases

CASES = ["a", "b", "c"]


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path / "state" / "leases.json", minutes=60)


def test_each_client_gets_another_case_and_keeps_it(leases: Leases) -> None:
    assert [leases.offer(client, CASES, 0) for client in ("ann", "bob")] == ["a", "b"]
    assert [leases.offer(client, ["c", "b", "a"], 1) for client in ("ann", "bob")] == ["a", "b"]


def test_none_is_left_for_a_fourth_client(leases: Leases) -> None:
    assert [leases.offer(f"client{n}", CASES, 0) for n in range(4)] == ["a", "b", "c", None]


def test_a_lease_runs_out(leases: Leases) -> None:
    assert leases.offer("ann", ["a"], 0) == "a"
    assert leases.offer("bob", ["a"], 3599) is None
    assert leases.offer("bob", ["a"], 3601) == "a"


def test_asking_again_extends_the_lease(leases: Leases) -> None:
    leases.offer("ann", ["a"], 0)
    leases.offer("ann", ["a"], 3000)
    assert leases.offer("bob", ["a"], 4000) is None


def test_a_labelled_case_is_not_offered_again(leases: Leases) -> None:
    leases.offer("ann", CASES, 0)
    assert leases.offer("ann", ["b", "c"], 1) == "b"
    assert set(leases.table()) == {"b"}


def test_release(leases: Leases) -> None:
    leases.offer("ann", CASES, 0)
    leases.release("a")
    leases.release("unknown")
    assert leases.offer("bob", CASES, 1) == "a"


def test_leases_outlast_a_restart(leases: Leases, tmp_path: Path) -> None:
    leases.offer("ann", CASES, 0)
    assert Leases(tmp_path / "state" / "leases.json", minutes=60).offer("bob", CASES, 1) == "b"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"client": "ann"}}'])
def test_an_unreadable_file_ends_all_leases(leases: Leases, tmp_path: Path, content: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "leases.json").write_text(content)
    assert leases.offer("bob", CASES, 0) == "a"
    assert json.loads((tmp_path / "state" / "leases.json").read_text())["a"]["client"] == "bob"


def test_clients_that_ask_at_once_get_different_cases(leases: Leases) -> None:
    cases = [f"case{n}" for n in range(12)]
    offered: list[str | None] = []
    threads = [
        threading.Thread(target=lambda n=n: offered.append(leases.offer(f"client{n}", cases, 0)))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(case) for case in offered) == sorted(cases)
