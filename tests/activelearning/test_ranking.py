"""The order of the cases that are offered."""

import numpy as np

from lib.activelearning.ranking import by_name, by_score, shuffled


def test_the_most_uncertain_comes_first() -> None:
    assert by_score(["a", "b", "c"], {"a": 0.1, "b": 0.9, "c": 0.5}) == ["b", "c", "a"]


def test_cases_without_a_score_come_last_in_a_lasting_order() -> None:
    names = [f"case{n}" for n in range(20)]
    ranked = by_score(names, {"case3": 0.0})
    assert ranked[0] == "case3"
    assert by_score(reversed(names), {"case3": 0.0}) == ranked
    assert ranked[1:] != sorted(ranked[1:]), "the order is by hash, not by name"


def test_equal_scores_are_no_problem() -> None:
    assert sorted(by_score(["a", "b"], {"a": 0.5, "b": 0.5})) == ["a", "b"]


def test_shuffling_follows_the_generator() -> None:
    names = [f"case{n}" for n in range(10)]
    first = shuffled(names, np.random.default_rng(1))
    assert first == shuffled(list(reversed(names)), np.random.default_rng(1))
    assert first != shuffled(names, np.random.default_rng(2))
    assert sorted(first) == names


def test_shuffling_gives_every_case_the_first_place() -> None:
    rng = np.random.default_rng(0)
    assert {shuffled(["a", "b", "c"], rng)[0] for _ in range(50)} == {"a", "b", "c"}


def test_nothing_to_rank() -> None:
    assert by_score([], {}) == by_name([]) == shuffled([], np.random.default_rng(0)) == []


def test_by_name() -> None:
    assert by_name(["b", "a"]) == ["a", "b"]
