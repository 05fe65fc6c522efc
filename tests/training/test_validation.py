import dataclasses

import numpy as np
import pytest

from lib.training import validation
from lib.training.validation import ObjectScore, as_scores, validate


def test_every_label_of_every_case_is_annotated_with_two_clicks(tiny_model, unseen, view):
    found = validate(tiny_model, unseen, view)
    assert [(score.case_id, score.label) for score in found] == [("case10", "object"), ("case11", "object")]
    for score in found:
        assert len(score.clicks) == 2
        assert all(0 <= dice <= 1 for dice in (*score.clicks, score.automatic))


def test_it_gives_the_same_numbers_twice(tiny_model, unseen, view):
    assert validate(tiny_model, unseen, view) == validate(tiny_model, unseen, view)


def test_a_case_without_the_label_gives_no_score(tiny_model, unseen, view):
    empty = dataclasses.replace(unseen[0], label=np.zeros_like(unseen[0].label))
    assert validate(tiny_model, [empty], view) == []


def test_a_perfect_first_answer_counts_for_both_clicks(tiny_model, unseen, view, monkeypatch):
    class Perfect:
        def __init__(self, *args):
            pass

        def predict(self, volume, prompts):
            return type("Answer", (), {"mask": unseen[0].label})()

        def automatic_mask(self, volume, label):
            return 0 * unseen[0].label

    monkeypatch.setattr(validation, "Predictor", Perfect)
    assert validate(tiny_model, unseen[:1], view) == [ObjectScore("case10", "object", (1.0, 1.0), 0.0)]


def test_scores_for_the_gate_hold_the_mean_over_the_clicks_of_each_case(unseen):
    objects = [
        ObjectScore("case10", "object", (0.5, 0.7), 0.1),
        ObjectScore("case11", "object", (0.8, 1.0), 0.2),
    ]
    scores = as_scores(objects, unseen, ["object", "never validated"], {"object": 1, "never validated": 2})
    assert scores.cases == ("case10", "case11")
    assert scores.dice["object"] == pytest.approx((0.6, 0.9))
    assert scores.dice["never validated"] == ()
