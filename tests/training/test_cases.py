import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.errors import TrainingError
from lib.training.cases import Skipped, case_hash, label_digest, load_cases, split

IDS = st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=25, unique=True)
FRACTIONS = st.floats(0.01, 0.99)


@given(IDS, FRACTIONS)
def test_split_partitions_the_cases_and_leaves_neither_part_empty(ids, fraction):
    training, validation = split(ids, fraction)
    assert sorted(training + validation) == sorted(ids)
    assert training
    assert validation


@given(IDS, FRACTIONS, st.randoms(use_true_random=False))
def test_no_case_ever_trained_on_validates_as_labels_are_added(ids, fraction, random):
    random.shuffle(ids)
    trained: set[str] = set()
    for count in range(2, len(ids) + 1):
        training, validation = split(ids[:count], fraction, trained)
        assert not trained & set(validation)
        trained |= set(training)
        if len(trained) == count:
            break


@given(IDS, FRACTIONS)
def test_at_least_the_fraction_validates_and_never_all(ids, fraction):
    training, validation = split(ids, fraction)
    assert len(validation) >= min(fraction * len(ids), len(ids) - 1)
    assert max(map(case_hash, validation)) <= min(map(case_hash, training))


def test_split_does_not_depend_on_the_order_of_the_cases():
    ids = [f"case{index}" for index in range(20)]
    assert split(ids, 0.3) == split(ids[::-1], 0.3)


def test_the_lowest_hash_validates_when_none_is_below_the_fraction():
    ids = sorted((f"case{index}" for index in range(9)), key=case_hash)
    assert split(ids, case_hash(ids[0]) / 2) == (ids[1:], ids[:1])


def test_a_case_trained_on_earlier_stays_in_training_when_it_becomes_the_lowest():
    ids = sorted((f"case{index}" for index in range(4)), key=case_hash)
    _, validation = split(ids, 1e-9, trained_before={ids[0]})
    assert validation == [ids[1]]


@pytest.mark.parametrize("ids", [[], ["only"], ["same", "same"]])
def test_fewer_than_two_cases_are_refused_with_their_number(ids):
    with pytest.raises(TrainingError, match=f"at least 2 usable labelled cases, found {len(set(ids))}"):
        split(ids, 0.2)


def test_all_cases_trained_on_earlier_are_refused():
    with pytest.raises(TrainingError, match="label one more"):
        split(["a", "b"], 0.5, trained_before={"a", "b"})


def test_case_hashes_spread_over_the_unit_interval():
    hashes = np.array([case_hash(f"case{index}") for index in range(2000)])
    assert hashes.min() >= 0
    assert hashes.max() < 1
    counts, _ = np.histogram(hashes, bins=10, range=(0, 1))
    assert counts.min() > 140


def test_label_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "label.nii.gz"
    path.write_bytes(b"content")
    before = label_digest(path)
    assert before == hashlib.sha256(b"content").hexdigest()
    path.write_bytes(b"contenu")
    assert label_digest(path) != before


def test_usable_cases_are_loaded_in_order_and_the_others_named(cases, write_case):
    files = [write_case(cases[2]), write_case(cases[0], 5 * cases[0].label), write_case(cases[1])]
    loaded, skipped = load_cases(files, {"object": 1})
    assert [case.case_id for case in loaded] == ["case2", "case1"]
    assert np.array_equal(loaded[0].label, cases[2].label)
    assert np.array_equal(loaded[0].volume.array, cases[2].volume.array)
    assert [found.case_id for found in skipped] == ["case0"]
    assert "value 5" in skipped[0].reason


def test_an_empty_label_is_skipped_with_that_reason(cases, write_case):
    _, skipped = load_cases([write_case(cases[0], 0 * cases[0].label)], {"object": 1})
    assert skipped == [Skipped("case0", "the label is empty")]
