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
from lib.activelearning.strategies import LeasedStrategy, strategies
from lib.scoring.scores import CaseScore, LabelScore, ScoreFolder

LABELLED = ("old0", "old1", "old2", "old3")


class Store:
    """A datastore with nothing but images."""

    def __init__(self, *unlabelled: str) -> None:
        self.unlabelled, self.labelled = list(unlabelled), LABELLED
        self.files: dict[str, str] = {}

    def list_images(self) -> list[str]:
        return [*self.unlabelled, *self.labelled]

    def get_unlabeled_images(self) -> list[str]:
        return self.unlabelled

    def image_signatures(self) -> dict[str, str]:
        return {case: self.files.get(case, "") for case in self.list_images()}


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


def test_an_image_that_cannot_be_read_is_offered_to_nobody_until_it_is_another_file(
    by_name: dict[str, Any], tmp_path: Path
) -> None:
    scores = ScoreFolder(tmp_path / "scores")
    scores.append("b", CaseScore("vit_t", 1, error="no volume", image="half of it", unreadable=True))
    store = Store("b")
    store.files["b"] = "half of it"
    assert by_name["medsa"]({}, store) == {}
    store.files["b"] = "all of it"
    assert by_name["medsa"]({}, store)["id"] == "b"


@pytest.mark.parametrize("name", ["medsa", "diversity"])
@pytest.mark.parametrize("labels", [0, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_nobody_is_given_the_twin_of_a_case_that_somebody_else_has(
    name: str, labels: int, seed: int, tmp_path: Path
) -> None:
    folder, rng = ScoreFolder(tmp_path / "scores"), np.random.default_rng(seed)
    cases = [f"patient{number}_{phase}" for number in range(24) for phase in ("ED", "ES")]
    for patient in range(24):
        centre = rng.normal(size=8)
        for phase in ("ED", "ES"):
            values = {"object": LabelScore(*rng.uniform(0.1, 0.5, 3), 10.0)}
            embedding = (centre + 0.02 * rng.normal(size=8)).astype(np.float32)
            folder.append(f"patient{patient}_{phase}", CaseScore("vit_t", 1, values, embedding))
    leases = Leases(tmp_path / "leases.json", 60)
    chooser = Chooser(folder, ("object",), seed=0, patience=30.0, held=lambda: leases.held(1.0))
    strategy = LeasedStrategy(name, chooser, leases, now=lambda: 1.0)
    unlabelled, hands = list(cases), dict[str, str]()
    for case in cases[: 2 * labels : 2]:
        unlabelled.remove(case)
    for turn in range(15):
        client = f"client{turn % 3}"
        if client in hands:  # it was labelled
            unlabelled.remove(hands.pop(client))
        store = Store(*unlabelled)
        store.labelled = tuple(case for case in cases if case not in unlabelled)
        hands[client] = strategy({"client_id": client}, store)["id"]
        patients = [case.split("_")[0] for case in hands.values()]
        assert len(set(patients)) == len(patients), f"turn {turn}: {hands}"


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
