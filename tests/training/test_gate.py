import math
import time

import pytest

from lib.training.gate import MEASURES, Rules, Scores, decide

LABELS = {"liver": 1, "spleen": 2}
RULES = Rules(margin=0.02, confidence=0.95)


def evenly(*values, cases="abcdefgh"):
    """The same Dice in all measures, one a case."""
    return {measure: dict(zip(cases, values, strict=False)) for measure in MEASURES}


def scores(liver=(0.8,) * 6, spleen=(0.7,) * 6, labels=None):
    return Scores(labels or LABELS, {"liver": evenly(*liver), "spleen": evenly(*spleen)})


def plus(values, change):
    return tuple(value + change for value in values)


def test_better_on_one_label_and_equal_on_the_other_is_published():
    decision = decide(scores(), scores(liver=plus((0.8,) * 6, 0.05)), RULES)
    assert decision.publish
    assert decision.reasons[0].startswith("liver: Dice 1 click 0.8000 -> 0.8500, 3 clicks 0.8000 -> 0.8500")
    assert decision.reasons[1].endswith("no clicks 0.7000 -> 0.7000")


NAN = (0.9, 0.9, 0.9, 0.9, 0.9, math.nan)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (scores(), "no label is better"),
        (scores(liver=(0.9,) * 6, spleen=(0.67,) * 6), "spleen, 1 click: Dice 0.7000 -> 0.6700"),
        (scores(liver=(0.79,) * 6, spleen=(0.69,) * 6), "no label is better"),
        (scores(liver=NAN), "liver: a score is not a number"),
        (scores(liver=(math.inf,) * 6), "liver: a score is not a number"),
        (scores(liver=(1.1,) * 6), "liver: a score is not a number"),
        (scores(liver=(0.9,) * 6, spleen=()), "spleen: no validation case has this label"),
        (scores(liver=(0.9,) * 5), "liver: the two were not scored on the same"),
        (scores(liver={}, spleen=(0.9,) * 6), "liver: no validation case has this label"),
        (scores(liver=(0.9,) * 6, labels={"liver": 1, "spleen": 3}), "the label map changed"),
        (scores(liver=(0.9,) * 6, labels={"liver": 1}), "the label map changed"),
        (Scores(LABELS, {"liver": evenly(*(0.9,) * 6)}), "spleen: no validation case has this label"),
        (Scores(LABELS, {}), "there is no validation case"),
    ],
)
def test_refused(candidate, reason):
    decision = decide(scores(), candidate, RULES)
    assert not decision.publish
    assert reason in " ".join(decision.reasons)


def test_the_same_number_of_other_cases_is_not_the_same_cases():
    others = Scores(LABELS, {"liver": evenly(*(0.9,) * 6, cases="uvwxyz"), "spleen": evenly(*(0.9,) * 6)})
    assert "not scored on the same" in decide(scores(), others, RULES).reasons[0]


@pytest.mark.parametrize("measure", MEASURES)
def test_one_measure_that_is_worse_is_enough_to_refuse(measure):
    worse = {measure: dict.fromkeys("abcdef", 0.6)}
    better = scores(liver=(0.95,) * 6, spleen=(0.95,) * 6)
    candidate = Scores(LABELS, {**better.dice, "spleen": {**better.dice["spleen"], **worse}})
    decision = decide(scores(), candidate, RULES)
    assert not decision.publish
    assert [reason.split(":")[0] for reason in decision.reasons] == [f"spleen, {measure}"]


def test_a_loss_within_the_margin_is_accepted_when_another_label_gains():
    assert decide(scores(), scores(liver=(0.9,) * 6, spleen=(0.69,) * 6), RULES).publish
    assert not decide(scores(), scores(liver=(0.9,) * 6, spleen=(0.69,) * 6), Rules(0.0, 0.95)).publish


def test_a_mean_that_is_no_worse_is_not_enough_where_it_may_well_be_by_chance():
    """Half of the cases win 0.2 and half lose 0.2: the true difference may be far below the margin."""
    swinging = tuple(0.8 + change for change in (0.15, -0.15) * 3)
    decision = decide(scores(), scores(liver=swinging, spleen=(0.9,) * 6), RULES)
    assert not decision.publish
    assert "liver, 1 click: Dice 0.8000 -> 0.8000, may be lower by" in decision.reasons[0]


def test_a_gain_that_may_be_chance_is_none():
    lucky = (0.81, 0.795, 0.805, 0.8, 0.79, 0.808)
    decision = decide(scores(), scores(liver=lucky), RULES)
    assert not decision.publish
    assert "no label is better for sure (95%)" in decision.reasons[0]


def test_cases_of_one_patient_are_one_sample():
    """One patient of three gains a lot on four stacks: by cases that is sure, by patients it is not."""
    candidate = scores(liver=(0.9, 0.9, 0.9, 0.9, 0.79, 0.79))
    of_cases = decide(scores(), candidate, Rules(0.02, 0.95))
    by_patient = Rules(0.02, 0.95, group_of=lambda case: {"e": "two", "f": "three"}.get(case, "one"))
    assert of_cases.publish
    assert not decide(scores(), candidate, by_patient).publish


@pytest.mark.parametrize(("count", "publish"), [(1, False), (2, False), (3, True)])
def test_fewer_than_three_cases_are_too_few_to_tell(count, publish):
    before = scores(liver=(0.8,) * count, spleen=(0.7,) * count)
    decision = decide(before, scores(liver=(0.85,) * count, spleen=(0.7,) * count), RULES)
    assert decision.publish == publish
    if not publish:
        assert decision.reasons[0] == f"too few to tell: {count} of at least 3 patients or cases"


def test_a_label_of_one_case_alone_can_still_refuse():
    before = scores(liver=(0.8,) * 6, spleen=(0.7,))
    assert decide(before, scores(liver=(0.9,) * 6, spleen=(0.7,)), RULES).publish
    assert not decide(before, scores(liver=(0.9,) * 6, spleen=(0.6,)), RULES).publish


def test_a_number_missing_for_the_champion_refuses_too():
    assert not decide(scores(liver=NAN), scores(liver=(0.95,) * 6), RULES).publish


def test_the_decision_is_the_same_twice_and_quick():
    names = [f"label{number}" for number in range(20)]
    before = Scores(dict.fromkeys(names, 1), {name: evenly(0.5, 0.6, 0.7, 0.8) for name in names})
    after = Scores(dict.fromkeys(names, 1), {name: evenly(0.6, 0.6, 0.8, 0.8) for name in names})
    started = time.process_time()
    assert decide(before, after, RULES) == decide(before, after, RULES)
    assert time.process_time() - started < 10


def test_every_label_that_got_worse_is_named():
    decision = decide(scores(), scores(liver=(0.1,) * 6, spleen=(0.1,) * 6), RULES)
    assert {reason.split(",")[0] for reason in decision.reasons} == {"liver", "spleen"}
    assert len(decision.reasons) == 8


def test_overall_is_the_mean_over_labels_not_over_cases():
    assert scores(liver=(1.0, 1.0), spleen=(0.5,)).overall == pytest.approx(0.75)
    assert Scores(LABELS, {"liver": {}}).overall is None
