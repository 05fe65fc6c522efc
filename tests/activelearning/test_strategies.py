"""MONAI Label's view of the strategies."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout

from lib.activelearning.chooser import Chooser
from lib.activelearning.leases import Leases
from lib.activelearning.ranking import STRATEGIES
from lib.activelearning.strategies import strategies
from lib.scoring.scores import CaseScore, LabelScore, ScoreFolder

LABELLED = ("old0", "old1", "old2", "old3")


class Store:
    """A datastore with nothing but images."""

    def __init__(self, *unlabelled: str) -> None:
        self.unlabelled = list(unlabelled)

    def list_images(self) -> list[str]:
        return [*self.unlabelled, *LABELLED]

    def get_unlabeled_images(self) -> list[str]:
        return self.unlabelled


@pytest.fixture
def by_name(tmp_path: Path) -> dict[str, Any]:
    folder = ScoreFolder(tmp_path / "scores")
    for place, (case, value) in enumerate(
        {"a": 0.01, "b": 0.9, "c": 0.02, **dict.fromkeys(LABELLED, 0.1)}.items()
    ):
        labels = {"object": LabelScore(value, value, value, 10.0)}
        folder.append(case, CaseScore("vit_t", 1, labels, np.eye(7, dtype=np.float32)[place]))
    return strategies(Chooser(folder, ("object",), seed=0), Leases(tmp_path / "leases.json", 60))


def test_names_and_descriptions(by_name: dict[str, Any]) -> None:
    assert list(by_name) == list(STRATEGIES)
    assert next(iter(by_name)) == "medsa"
    assert all(strategy.info()["description"] for strategy in by_name.values())


@pytest.mark.parametrize("name", ["medsa", "entropy"])
def test_the_uncertain_case_comes_first_and_it_is_said_why(by_name: dict[str, Any], name: str) -> None:
    found = by_name[name]({"client_id": "ann"}, Store("a", "b", "c"))
    assert (found["id"], found["strategy"], found["rank"], found["of"]) == ("b", name, 1, 3)
    assert found["reason"]


def test_first_takes_the_first(by_name: dict[str, Any]) -> None:
    assert by_name["first"]({"client_id": "ann"}, Store("b", "a"))["id"] == "a"


@pytest.mark.parametrize("name", STRATEGIES)
def test_none_is_left(by_name: dict[str, Any], name: str) -> None:
    assert by_name[name]({}, Store()) == {}
    assert by_name[name]({"client_id": "ann"}, Store("a"))["id"] == "a"
    assert by_name[name]({"client_id": "bob"}, Store("a")) == {}


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_cases_are_offered_in_the_end(by_name: dict[str, Any], name: str) -> None:
    offered = {by_name[name]({"client_id": str(n)}, Store("a", "b", "c"))["id"] for n in range(3)}
    assert offered == {"a", "b", "c"}


def test_the_second_annotator_is_told_the_rank_of_the_own_case(by_name: dict[str, Any]) -> None:
    by_name["medsa"]({"client_id": "ann"}, Store("a", "b", "c"))
    assert by_name["medsa"]({"client_id": "bob"}, Store("a", "b", "c"))["rank"] == 2


def test_what_is_unlabelled_is_asked_under_the_lock(by_name: dict[str, Any], tmp_path: Path) -> None:
    class Locked(Store):
        def get_unlabeled_images(self) -> list[str]:
            with pytest.raises(Timeout):
                FileLock(tmp_path / "leases.lock").acquire(timeout=0)
            return super().get_unlabeled_images()

    assert by_name["first"]({}, Locked("a"))["id"] == "a"


def test_requests_without_a_client_are_one_client(by_name: dict[str, Any]) -> None:
    first = by_name["random"]({}, Store("a", "b", "c"))
    assert by_name["random"]({}, Store("a", "b", "c"))["id"] == first["id"]


def test_fifty_that_ask_at_once_get_fifty_cases(by_name: dict[str, Any]) -> None:
    store, found = Store(*(f"case{n}" for n in range(60))), []

    def ask(number: int) -> None:
        found.append(by_name["medsa"]({"client_id": f"client{number}"}, store)["id"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 50
