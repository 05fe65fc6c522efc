import math

import pytest

from lib.training.gate import Scores, decide

LABELS = {"liver": 1, "spleen": 2}


def scores(liver=(0.8, 0.8), spleen=(0.7,), labels=None, cases=("a", "b")):
    return Scores(labels or LABELS, tuple(cases), {"liver": tuple(liver), "spleen": tuple(spleen)})


def test_better_on_one_label_and_equal_on_the_other_is_published():
    decision = decide(scores(), scores(liver=(0.9, 0.8)), 0.0)
    assert decision.publish
    assert decision.reasons == (
        "liver: Dice 0.8000 -> 0.8500",
        "spleen: Dice 0.7000 -> 0.7000",
    )


@pytest.mark.parametrize(
    ("candidate", "margin", "reason"),
    [
        (scores(), 0.0, "no label is better"),
        (scores(liver=(0.9, 0.9), spleen=(0.69,)), 0.0, "spleen: Dice 0.7000 -> 0.6900: worse"),
        (scores(liver=(0.9, 0.9), spleen=(0.64,)), 0.05, "spleen: Dice 0.7000 -> 0.6400: worse"),
        (scores(liver=(0.79, 0.79)), 0.05, "no label is better"),
        (scores(liver=(0.9, math.nan)), 0.0, "liver: a score is not a number"),
        (scores(liver=(0.9, math.inf)), 0.0, "liver: a score is not a number"),
        (scores(liver=(1.1, 1.1)), 0.0, "liver: a score is not a number"),
        (scores(liver=(0.9, 0.9), spleen=()), 0.0, "spleen: no validation case has this label"),
        (scores(liver=(0.9,)), 0.0, "liver: scored on 1 cases, the serving version on 2"),
        (scores(liver=(0.9, 0.9), cases=("a", "c")), 0.0, "not scored on the same validation cases"),
        (scores(liver=(0.9, 0.9), labels={"liver": 1, "spleen": 3}), 0.0, "the label map changed"),
        (scores(liver=(0.9, 0.9), labels={"liver": 1}), 0.0, "the label map changed"),
    ],
)
def test_refused(candidate, margin, reason):
    decision = decide(scores(), candidate, margin)
    assert not decision.publish
    assert reason in " ".join(decision.reasons)


def test_a_loss_within_the_margin_is_accepted_when_another_label_gains():
    assert decide(scores(), scores(liver=(0.9, 0.9), spleen=(0.66,)), 0.05).publish


def test_a_number_missing_for_the_champion_refuses_too():
    decision = decide(scores(liver=(math.nan, 0.8)), scores(liver=(0.9, 0.9)), 0.0)
    assert not decision.publish


def test_a_label_that_only_one_of_them_has_refuses():
    champion = Scores(LABELS, ("a",), {"liver": (0.5,)})
    candidate = Scores(LABELS, ("a",), {"liver": (0.9,), "spleen": (0.9,)})
    assert not decide(champion, candidate, 0.0).publish
    assert not decide(candidate, champion, 0.0).publish


@pytest.mark.parametrize("dice", [{}, {"liver": ()}])
def test_no_validation_case_refuses(dice):
    nothing = Scores(LABELS, (), dice)
    decision = decide(nothing, nothing, 0.0)
    assert not decision.publish
    assert "there is no validation case" in decision.reasons


def test_every_label_that_got_worse_is_named():
    decision = decide(scores(), scores(liver=(0.1, 0.1), spleen=(0.1,)), 0.0)
    assert [reason.split(":")[0] for reason in decision.reasons] == ["liver", "spleen"]


def test_overall_is_the_mean_over_labels_not_over_cases():
    assert scores(liver=(1.0, 1.0), spleen=(0.5,)).overall == pytest.approx(0.75)
    assert Scores(LABELS, (), {"liver": ()}).overall is None
