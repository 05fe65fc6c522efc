"""Cases as numbers."""

from collections.abc import Callable

import numpy as np
import pytest

from lib.activelearning.pool import Pool, pool_of
from lib.scoring.scores import CaseScore, LabelScore, ScoreTable

MakePool = Callable[..., Pool]


def of(pool: Pool, case: str) -> int:
    return pool.cases.index(case)


def test_every_number_is_at_its_case(make_pool: MakePool) -> None:
    pool = make_pool(
        {"a": ((0.2, 0.4), (1, 2)), "b": ((0.6, 0.8), (3, 2)), "c": None}, ("liver", "spleen"), {"b"}
    )
    assert sorted(pool.cases) == ["a", "b", "c"]
    assert pool.uncertainty[of(pool, "a")].tolist() == pytest.approx([0.2, 0.4])
    assert pool.uncertainty[of(pool, "b")].tolist() == pytest.approx([0.6, 0.8])
    assert np.isnan(pool.uncertainty[of(pool, "c")]).all()
    assert pool.labelled[of(pool, "b")]
    assert sorted(pool.cases[place] for place in pool.unlabelled) == ["a", "c"]
    assert pool.described[[of(pool, "a"), of(pool, "b"), of(pool, "c")]].tolist() == [True, True, False]
    assert pool.embedding[of(pool, "a")].tolist() == [
        -1,
        0,
    ]  # standardised; the second number is the same in all


def test_the_order_is_not_that_of_the_names(make_pool: MakePool) -> None:
    names = [f"case{number:02d}" for number in range(20)]
    pool = make_pool(dict.fromkeys(names))
    assert list(pool.cases) != names
    assert pool.cases == make_pool(dict.fromkeys(reversed(names))).cases


def test_embeddings_are_standardised_and_those_of_another_base_are_none() -> None:
    rng = np.random.default_rng(0)
    entries = {
        f"case{row}": CaseScore("vit_t", 1 + row % 2, {}, 5 + 3 * rng.normal(size=8).astype(np.float32))
        for row in range(40)
    }
    entries["other"] = CaseScore("vit_b", 1, {}, np.ones(8, np.float32))
    entries["longer"] = CaseScore("vit_t", 1, {}, np.ones(9, np.float32))
    pool = pool_of(entries, ("liver",), ScoreTable(entries))
    assert not pool.described[[of(pool, "other"), of(pool, "longer")]].any()
    known = pool.embedding[pool.described]
    assert len(known) == 40
    assert np.abs(known.mean(axis=0)).max() < 1e-5
    assert known.std(axis=0) == pytest.approx(np.ones(8), rel=1e-3)


def test_a_label_of_which_next_to_nothing_is_seen_is_not_expected(make_pool: MakePool) -> None:
    cases = dict.fromkeys("abcd", ((0.5, 0.5), (0, 0))) | {"new": None}
    pool = make_pool(
        cases, ("liver", "spleen"), volumes={"a": (1000, 5), "b": (900, 60), "c": (20, 60), "d": (1100, 0)}
    )
    found = {case: pool.expected[of(pool, case)].tolist() for case in pool.cases}
    assert found == {
        "a": [True, False],
        "b": [True, True],
        "c": [False, True],
        "d": [True, False],
        "new": [True, True],
    }


def test_other_cases_labelled_leave_the_numbers_alone(make_pool: MakePool) -> None:
    pool = make_pool({"a": ((0.2,), (1,)), "b": ((0.6,), (3,))})
    later = pool.with_labelled({"a"})
    assert later.labelled.sum() == 1
    assert not pool.labelled.any()
    assert later.entropy is pool.entropy


def test_a_score_that_lacks_a_label_counts_as_none_for_it() -> None:
    entries = {"a": CaseScore("vit_t", 1, {"liver": LabelScore(0.1, 0.1, 0.1, 1.0)}, np.ones(2, np.float32))}
    pool = pool_of(["a"], ("liver", "spleen"), ScoreTable(entries))
    assert np.isnan(pool.uncertainty).tolist() == [[False, True]]


def test_no_cases(make_pool: MakePool) -> None:
    pool = make_pool({})
    assert pool.cases == ()
    assert pool.uncertainty.shape == (0, 1)
    assert pool.unlabelled.size == pool.described.size == 0
