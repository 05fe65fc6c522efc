import hashlib

import numpy as np

from lib.training.cases import Skipped, label_digest, load_cases


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
