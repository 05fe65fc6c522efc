"""MONAI Label's view of the strategies."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from lib.activelearning.leases import Leases
from lib.activelearning.strategies import strategies
from lib.scoring.scores import CaseScore, ScoreTable, write_scores


class Store:
    """A datastore with nothing but unlabelled images."""

    def __init__(self, *unlabelled: str) -> None:
        self.unlabelled = list(unlabelled)

    def get_unlabeled_images(self) -> list[str]:
        return self.unlabelled


@pytest.fixture
def by_name(tmp_path: Path) -> dict[str, Any]:
    scores = {
        "a": CaseScore(0.2, "vit_t", 0),
        "b": CaseScore(0.8, "vit_t", 0),
        "c": CaseScore(None, "vit_t", 0, "bad"),
    }
    write_scores(tmp_path / "scores.json", ScoreTable(scores))
    return strategies(Leases(tmp_path / "leases.json", 60), tmp_path / "scores.json", seed=0)


def test_names_and_descriptions(by_name: dict[str, Any]) -> None:
    assert list(by_name) == ["medsa", "random", "first"]
    assert all(strategy.info()["description"] for strategy in by_name.values())


def test_medsa_takes_the_highest_score(by_name: dict[str, Any]) -> None:
    assert by_name["medsa"]({"client_id": "ann"}, Store("a", "b", "c")) == {"id": "b"}


def test_first_takes_the_first(by_name: dict[str, Any]) -> None:
    assert by_name["first"]({"client_id": "ann"}, Store("b", "a")) == {"id": "a"}


@pytest.mark.parametrize("name", ["medsa", "random", "first"])
def test_none_is_left(by_name: dict[str, Any], name: str) -> None:
    assert by_name[name]({}, Store()) == {}
    assert by_name[name]({"client_id": "ann"}, Store("a")) == {"id": "a"}
    assert by_name[name]({"client_id": "bob"}, Store("a")) == {}


def test_random_offers_all_cases_in_the_end(by_name: dict[str, Any]) -> None:
    offered = {by_name["random"]({"client_id": str(n)}, Store("a", "b", "c"))["id"] for n in range(3)}
    assert offered == {"a", "b", "c"}


def test_what_is_unlabelled_is_asked_under_the_lock(by_name: dict[str, Any], tmp_path: Path) -> None:
    class Locked(Store):
        def get_unlabeled_images(self) -> list[str]:
            with pytest.raises(Timeout):
                FileLock(tmp_path / "leases.lock").acquire(timeout=0)
            return super().get_unlabeled_images()

    assert by_name["first"]({}, Locked("a")) == {"id": "a"}


def test_requests_without_a_client_are_one_client(by_name: dict[str, Any]) -> None:
    first = by_name["random"]({}, Store("a", "b", "c"))
    assert by_name["random"]({}, Store("a", "b", "c")) == first
