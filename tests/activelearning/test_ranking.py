"""The order of the cases that are offered."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lib.activelearning.geometry import typicality
from lib.activelearning.pool import Pool
from lib.activelearning.ranking import COLD_LABELS, HEAD, STRATEGIES, Ranked, names

MakePool = Callable[..., Pool]


def ranked(strategy: str, pool: Pool, seed: int = 0) -> list[Ranked]:
    return STRATEGIES[strategy](pool, np.random.default_rng(seed))


def order(strategy: str, pool: Pool, seed: int = 0) -> list[str]:
    return names(ranked(strategy, pool, seed))


@pytest.fixture
def many(make_pool: MakePool) -> Callable[..., Pool]:
    """many(labelled, version, labels) -> 100 cases; the uncertainty of case n is n / 100."""

    def make(labelled: int = 10, version: int = 1, labels: tuple[str, ...] = ("liver",)) -> Pool:
        rng = np.random.default_rng(4)
        cases = {f"case{n:03d}": ((n / 100,) * len(labels), rng.normal(size=6)) for n in range(100)}
        return make_pool(cases, labels, [f"case{n:03d}" for n in range(0, 10 * labelled, 10)], version)

    return make


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("labelled", [0, 2, 10])
@pytest.mark.parametrize("version", [0, 1])
def test_every_unlabelled_case_comes_once(
    strategy: str, labelled: int, version: int, many: Callable[..., Pool]
) -> None:
    pool = many(labelled, version)
    assert sorted(order(strategy, pool)) == sorted(set(pool.cases) - set(_labelled(pool)))
    assert order(strategy, pool, 3) == order(strategy, pool, 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cases_of_which_nothing_is_known_come_too_and_last(strategy: str, make_pool: MakePool) -> None:
    rng = np.random.default_rng(0)
    known: dict[str, Any] = {f"known{n}": ((0.5,), rng.normal(size=3)) for n in range(8)}
    pool = make_pool(known | dict.fromkeys(("new0", "new1")), labelled=[f"known{n}" for n in range(5)])
    found = order(strategy, pool)
    assert len(found) == 5
    if strategy in ("medsa", "entropy", "diversity"):
        assert set(found[-2:]) == {"new0", "new1"}
        assert [one.why for one in ranked(strategy, pool)[-2:]] == ["unscored"] * 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_to_rank(strategy: str, make_pool: MakePool) -> None:
    assert ranked(strategy, make_pool({})) == []
    assert ranked(strategy, make_pool({"a": ((0.5,), (1, 2))}, labelled=["a"])) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_case_nothing_of_which_is_known(strategy: str, make_pool: MakePool) -> None:
    assert order(strategy, make_pool({"a": None})) == ["a"]


def test_random_gives_every_case_the_first_place(make_pool: MakePool) -> None:
    pool = make_pool(dict.fromkeys("abc"))
    assert {order("random", pool, seed)[0] for seed in range(50)} == {"a", "b", "c"}


def test_first_is_by_name(many: Callable[..., Pool]) -> None:
    assert order("first", many(0))[:3] == ["case000", "case001", "case002"]


def test_entropy_is_by_entropy(many: Callable[..., Pool]) -> None:
    assert order("entropy", many())[:3] == ["case099", "case098", "case097"]


def test_diversity_takes_what_is_farthest_from_all_that_is_labelled_or_chosen(make_pool: MakePool) -> None:
    cases = {
        "at0": ((0.5,), (0.0, 0)),
        "near": ((0.5,), (1, 0)),
        "left": ((0.5,), (-9, 0)),
        "right": ((0.5,), (10, 0)),
    }
    cases["right too"] = ((0.5,), (10.1, 0))
    assert order("diversity", make_pool(cases, labelled=["at0"]))[:2] == ["right too", "left"]


def test_foreground_random_passes_over_cases_without_the_label(make_pool: MakePool) -> None:
    cases = {f"case{n}": ((0.5,), (n,)) for n in range(12)}
    empty = {f"case{n}": (1.0,) for n in range(4)}
    pool = make_pool(cases, volumes=empty)
    for seed in range(5):
        assert set(order("foreground_random", pool, seed)[-4:]) == set(empty)
    assert len({order("foreground_random", pool, seed)[0] for seed in range(30)}) > 4


@pytest.mark.parametrize("labelled", range(COLD_LABELS))
def test_a_cold_start_takes_typical_cases_from_different_groups(labelled: int, make_pool: MakePool) -> None:
    rng = np.random.default_rng(1)
    centres = {"left": (-20, 0), "right": (20, 0), "top": (0, 20), "bottom": (0, -20)}
    cases: dict[str, Any] = {
        f"{name}{n}": ((0.1,), rng.normal(centre, 1.0)) for name, centre in centres.items() for n in range(12)
    }
    cases["outlier"] = ((0.99,), (300.0, 300.0))
    taken = [f"{name}0" for name in list(centres)[:labelled]]
    found = ranked("medsa", make_pool(cases, labelled=taken))
    assert {one.why for one in found} == {"cold"}
    groups = [one.case.rstrip("0123456789") for one in found[: len(centres) - labelled]]
    assert set(groups) == set(centres) - {name.rstrip("0") for name in taken}
    assert "outlier" not in names(found)[:10]


@pytest.mark.parametrize("count", [30, 1200])  # with more than a thousand images the generator matters too
def test_the_first_case_of_a_cold_pool_is_typical_whatever_the_pool_and_the_seed(
    count: int, make_pool: MakePool
) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        # Groups of different sizes, and outliers.
        groups = rng.choice(4, size=count, p=[0.5, 0.25, 0.15, 0.1])
        rows = 4 * rng.normal(size=(4, 6))[groups] + rng.normal(size=(count, 6))
        rows[: count // 15] *= 5
        pool = make_pool({f"case{n}": ((0.5,), row) for n, row in enumerate(rows)}, version=0)
        typical = typicality(pool.embedding, np.random.default_rng(0))
        place = pool.cases.index(order("medsa", pool, seed)[0])
        assert (typical > typical[place]).mean() < 0.25


def test_without_a_trained_version_it_stays_cold(many: Callable[..., Pool]) -> None:
    assert ranked("medsa", many(10, version=0))[0].why == "cold"
    assert ranked("medsa", many(10, version=1))[0].why == "uncertain"


def test_uncertain_cases_come_first_on_the_whole(many: Callable[..., Pool]) -> None:
    pool = many(10)
    for seed in range(5):
        places = [int(case.removeprefix("case")) for case in order("medsa", pool, seed)]
        assert np.mean(places[:20]) > np.mean(places) + 10
        assert places[:HEAD] != sorted(places[:HEAD], reverse=True), "it is a draw, and it looks at distances"


def test_the_noise_falls_with_the_number_of_labels(make_pool: MakePool) -> None:
    cases = {f"case{n:03d}": ((n / 200,), np.ones(3)) for n in range(200)}

    def spread(labelled: int) -> float:
        pool = make_pool(cases, labelled=[f"case{n:03d}" for n in range(labelled)])
        first = [int(order("medsa", pool, seed)[0].removeprefix("case")) for seed in range(20)]
        return float(np.mean(199 - np.asarray(first)))

    assert spread(5) > 3 * spread(100)


def test_of_two_that_are_equally_uncertain_the_one_unlike_the_labelled_comes_first(
    make_pool: MakePool,
) -> None:
    cases: dict[str, Any] = {f"old{n}": ((0.3,), (n / 10, 0)) for n in range(50)}
    cases |= {f"like{n}": ((0.5,), (2.5, n / 100)) for n in range(5)}
    cases |= {f"unlike{n}": ((0.5,), (2.5, 40 + n / 100)) for n in range(5)}
    cases["alone"] = ((0.5,), (200, 200))
    pool = make_pool(cases, labelled=[f"old{n}" for n in range(50)])
    found = [order("medsa", pool, seed)[0].rstrip("01234") for seed in range(20)]
    assert found.count("unlike") >= 18, "neither one that is like them nor one that is like no other"


def test_each_label_gets_its_share_of_the_places(make_pool: MakePool) -> None:
    rng = np.random.default_rng(0)
    # The spleen is what all cases are most unsure of; the kidney's own cases would never come first.
    cases: dict[str, Any] = {f"spleen{n}": ((0.1, 0.9, 0.1), rng.normal(size=4)) for n in range(40)}
    cases |= {f"kidney{n}": ((0.1, 0.1, 0.4), rng.normal(size=4)) for n in range(40)}
    cases |= {f"old{n}": ((0.1, 0.1, 0.1), rng.normal(size=4)) for n in range(40)}
    labels = ("liver", "spleen", "kidney")
    pool = make_pool(cases, labels, labelled=[f"old{n}" for n in range(40)])
    head = [one.case for one in ranked("medsa", pool)[:24]]
    assert sum(case.startswith("kidney") for case in head) >= 3
    assert sum(case.startswith("spleen") for case in head) >= 12


def test_a_lone_annotator_is_given_each_label_in_turn(make_pool: MakePool) -> None:
    rng = np.random.default_rng(0)
    cases = {f"case{n}": ((0.1, 0.9, 0.1), rng.normal(size=4)) for n in range(20)}
    cases |= {f"kidney{n}": ((0.1, 0.1, 0.4), rng.normal(size=4)) for n in range(20)}
    cases |= {f"old{n}": ((0.1, 0.1, 0.1), rng.normal(size=4)) for n in range(30)}
    labels, given = ("liver", "spleen", "kidney"), []
    for labelled in range(10, 30):
        pool = make_pool(cases, labels, labelled=[f"old{n}" for n in range(labelled)])
        given.append(ranked("medsa", pool)[0].label)
    assert given.count("kidney") >= 3
    assert given.count("liver") >= 2
    assert given.count("spleen") >= 8


def test_without_an_embedding_of_anything_labelled_the_choice_is_still_diverse(make_pool: MakePool) -> None:
    rng = np.random.default_rng(0)
    cases: dict[str, Any] = {f"left{n}": ((0.5,), rng.normal((-9,), 0.1)) for n in range(10)}
    cases |= {f"right{n}": ((0.5,), rng.normal((9,), 0.1)) for n in range(10)}
    pool = make_pool(cases | dict.fromkeys("abcde"), labelled="abcde")
    for seed in range(10):
        first_two = [case.rstrip("0123456789") for case in order("medsa", pool, seed)[:2]]
        assert sorted(first_two) == ["left", "right"]


def test_the_label_that_is_named_is_one_that_is_expected(make_pool: MakePool) -> None:
    rng = np.random.default_rng(0)
    cases = {f"case{n}": ((0.3, 0.9), rng.normal(size=3)) for n in range(30)}
    volumes = {f"case{n}": (100.0, 1.0 if n < 15 else 100.0) for n in range(30)}
    pool = make_pool(cases, ("liver", "tumour"), [f"case{n}" for n in range(5)], volumes=volumes)
    # With five labelled every second place, from the second on, is for all labels together.
    together = [one for one in ranked("medsa", pool)[1::2] if int(one.case.removeprefix("case")) < 15]
    assert together
    assert {one.label for one in together} == {"liver"}


def test_a_label_that_is_not_expected_makes_no_case_uncertain(make_pool: MakePool) -> None:
    rng = np.random.default_rng(0)
    cases = {f"case{n}": ((0.3, 0.3), rng.normal(size=3)) for n in range(30)}
    cases["empty"] = ((0.3, 0.99), rng.normal(size=3))
    volumes = {"empty": (100.0, 0.0)}
    pool = make_pool(cases, ("liver", "tumour"), [f"case{n}" for n in range(20)], volumes=volumes)
    assert np.mean([order("medsa", pool, seed)[0] == "empty" for seed in range(10)]) < 0.5


def _labelled(pool: Pool) -> list[str]:
    return [case for case, done in zip(pool.cases, pool.labelled, strict=True) if done]
