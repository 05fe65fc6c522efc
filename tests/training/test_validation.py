import dataclasses

import numpy as np
import pytest

from lib.errors import TrainingStopped
from lib.training import validation
from lib.training.validation import ObjectScore, agreements, as_scores, validate


def test_every_label_of_every_case_is_annotated_with_five_clicks(tiny_model, unseen, view):
    found = validate(tiny_model, unseen, view)
    assert [(score.case_id, score.label) for score in found] == [("case10", "object"), ("case11", "object")]
    for score in found:
        assert len(score.clicks) == 5
        assert all(0 <= dice <= 1 for dice in (*score.clicks, score.automatic))


def test_it_gives_the_same_numbers_twice(tiny_model, unseen, view):
    assert validate(tiny_model, unseen, view) == validate(tiny_model, unseen, view)


def test_a_case_without_the_label_gives_no_score(tiny_model, unseen, view):
    empty = dataclasses.replace(unseen[0], label=np.zeros_like(unseen[0].label))
    assert validate(tiny_model, [empty], view) == []


def test_a_perfect_first_answer_counts_for_all_clicks(tiny_model, unseen, view, monkeypatch):
    class Perfect:
        def __init__(self, *args):
            pass

        def predict(self, volume, prompts):
            return type("Answer", (), {"mask": unseen[0].label})()

        def automatic_mask(self, volume, label):
            return 0 * unseen[0].label

    monkeypatch.setattr(validation, "Predictor", Perfect)
    assert validate(tiny_model, unseen[:1], view) == [ObjectScore("case10", "object", (1.0,) * 5, 0.0)]


def test_scores_for_the_gate_are_by_label_measure_and_case():
    objects = [
        ObjectScore("case10", "object", (0.1, 0.2, 0.3, 0.4, 0.5), 0.6),
        ObjectScore("case11", "object", (0.2, 0.3, 0.4, 0.5, 0.6), 0.7),
    ]
    scores = as_scores(objects, ["object", "never validated"], {"object": 1, "never validated": 2})
    assert scores.dice["object"] == {
        "1 click": {"case10": 0.1, "case11": 0.2},
        "3 clicks": {"case10": 0.3, "case11": 0.4},
        "5 clicks": {"case10": 0.5, "case11": 0.6},
        "no clicks": {"case10": 0.6, "case11": 0.7},
    }
    assert all(cases == {} for cases in scores.dice["never validated"].values())


def test_agreement_is_the_dice_without_clicks_and_after_some(tiny_model, unseen, view):
    found = agreements(tiny_model, unseen, view)
    assert found == [score.agreement for score in validate(tiny_model, unseen, view)]
    assert [(one.case_id, one.label) for one in found] == [("case10", "object"), ("case11", "object")]


@pytest.mark.parametrize("look", [validate, agreements])
def test_what_is_to_be_done_between_cases_may_end_it(tiny_model, unseen, view, look):
    asked = []

    def between():
        asked.append(1)
        if len(asked) == 2:
            raise TrainingStopped("asked")

    with pytest.raises(TrainingStopped):
        look(tiny_model, unseen, view, between)
    assert len(asked) == 2


@pytest.mark.parametrize("look", [validate, agreements])
def test_clicks_are_given_way_to_between_the_parts_of_a_case_too(tiny_model, unseen, view, look):
    asked = []
    look(tiny_model, unseen[:1], view, lambda: asked.append(1))
    assert len(asked) > 3


@pytest.mark.parametrize("look", [validate, agreements])
def test_where_memory_runs_out_the_case_is_tried_once_more(tiny_model, unseen, view, look, monkeypatch):
    plain = look(tiny_model, unseen, view)
    encode, left = type(tiny_model).encode, [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]

    def short(self, *arguments):
        if left:
            raise left.pop()
        return encode(self, *arguments)

    monkeypatch.setattr(type(tiny_model), "encode", short)
    assert look(tiny_model, unseen, view) == plain
    left += [RuntimeError("out of memory")] * 2
    with pytest.raises(RuntimeError, match="out of memory"):
        look(tiny_model, unseen, view)
    left[:] = [RuntimeError("something else")]
    with pytest.raises(RuntimeError, match="something else"):
        look(tiny_model, unseen, view)


def test_looking_for_agreement_ends_when_it_is_enough(tiny_model, unseen, view):
    assert [
        one.case_id for one in agreements(tiny_model, unseen, view, enough=iter([False, True]).__next__)
    ] == ["case10"]
