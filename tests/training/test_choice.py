import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.errors import TrainingError
from lib.training.choice import (
    MAX_CASES,
    MAX_READ,
    MAX_SINGLES,
    MIN_GROUPS,
    case_hash,
    choose,
    first_held,
    grouping,
    obstacle,
    to_read,
    without_patients_of,
)

IDS = st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=40, unique=True)
FRACTIONS = st.floats(0.05, 0.6)
PATIENT = r"^(p\d+)_"
PATIENT_OF = grouping(PATIENT, {})


def all_with(ids, *labels):
    return dict.fromkeys(ids, labels or ("liver",))


def below(fraction, count, start=0, form="case{}"):
    """`count` names with a hash below `fraction`."""
    names = (form.format(number) for number in itertools.count(start))
    return list(itertools.islice((name for name in names if case_hash(name) < fraction), count))


def above(fraction, count, form="case{}"):
    names = (form.format(number) for number in itertools.count())
    return list(itertools.islice((name for name in names if case_hash(name) >= fraction), count))


@given(IDS, FRACTIONS)
def test_no_case_is_both_trained_on_and_judged_by(ids, fraction):
    try:
        choice = choose(all_with(ids), ["liver"], fraction)
    except TrainingError:
        return
    assert choice.training
    assert len(choice.judged) >= MIN_GROUPS
    assert not set(choice.training) & set(choice.validation)
    assert set(choice.training) | set(choice.validation) <= set(ids)
    for fold in choice.folds:
        assert fold
        assert set(fold) < set(choice.training)
        assert without_patients_of(choice.training, fold, str)
    assert len(choice.folds) <= MAX_SINGLES
    assert len(choice.judged) == len(set(choice.judged))


def test_so_many_cases_are_left_out_at_the_most_and_of_every_label_some():
    many = above(0.2, 40)
    labels_of = {**all_with(many), many[-1]: ("liver", "rare")}
    choice = choose(labels_of, ["liver", "rare"], 0.2)
    left_out = [case for fold in choice.folds for case in fold]
    assert (len(left_out), many[-1] in left_out) == (MAX_CASES, True)
    assert set(choice.training) == set(many)


@given(IDS, FRACTIONS, st.randoms(use_true_random=False))
def test_a_case_stays_on_its_side_as_labels_are_added(ids, fraction, random):
    random.shuffle(ids)
    trained, validated = set(), set()
    for count in range(2, len(ids) + 1):
        try:
            choice = choose(all_with(ids[:count]), ["liver"], fraction)
        except TrainingError:
            continue
        trained |= set(choice.training)
        validated |= set(choice.validation)
    assert not trained & validated


def test_it_does_not_depend_on_the_order_of_the_cases():
    ids = [f"case{index}" for index in range(30)]
    assert choose(all_with(ids), ["liver"], 0.3) == choose(all_with(ids[::-1]), ["liver"], 0.3)


def test_a_label_that_no_case_can_judge_is_named_with_the_ways_out():
    cases = above(0.2, 4)
    with pytest.raises(TrainingError, match=r"no case can judge the label rare, .* roll back to a version"):
        choose(all_with(cases), ["liver", "rare"], 0.2)
    # It occurs, in what the serving version was trained on.
    labels_of = {**all_with(cases), cases[0]: ("liver", "rare")}
    with pytest.raises(TrainingError, match="no case can judge the label rare"):
        choose(labels_of, ["liver", "rare"], 0.2, trained_before=cases[:1])
    assert choose(labels_of, ["liver", "rare"], 0.2).folds


def test_what_validates_beyond_the_bound_is_named():
    held, rest = below(0.2, MAX_CASES + 3), above(0.2, 5)
    choice = choose(all_with([*held, *rest]), ["liver"], 0.2)
    assert len(choice.validation) == MAX_CASES
    assert len(choice.held_back) == 3
    assert {*choice.validation, *choice.held_back} == set(held)
    assert choose(all_with([*held[:4], *rest]), ["liver"], 0.2).held_back == ()


@pytest.mark.parametrize("count", [60, 100, 200, 300, 2000])
def test_after_a_rollback_an_incremental_run_learns_old_labels_too(count):
    """What serves has learned none of them. Those that validate do not crowd out those to be trained on."""
    others = [f"case{number}" for number in range(count)]
    read = to_read(others, [], 0.2, str, most=100, seed=0)
    training = {case for case in others if case_hash(case) >= 0.2}
    assert len(read & training) == min(100, len(training))
    assert len(read - training) == min(MAX_READ, count - len(training))


@pytest.mark.parametrize(
    ("learned", "missed", "expected"),
    [(50, 10, (30, 10)), (10, 50, (10, 30)), (50, 50, (20, 20)), (9, 9, (9, 9))],
)
def test_what_serves_is_reminded_of_what_it_knows_beside_what_it_missed(learned, missed, expected):
    cases = above(0.2, learned + missed)
    known, others = cases[:learned], cases[learned:]
    read = to_read(cases, known, 0.2, str, most=40, seed=0)
    assert (len(read & set(known)), len(read & set(others))) == expected
    assert to_read(cases[::-1], known, 0.2, str, most=40, seed=0) == read
    assert (to_read(cases, known, 0.2, str, most=40, seed=1) == read) == (expected == (9, 9))


def test_who_has_very_many_cases_does_not_crowd_out_other_patients():
    """Else a run that nothing stood in the way of would fail for want of patients."""
    (many, *few) = above(0.2, 9, form="p{}")
    others = [*(f"{many}_{number}" for number in range(600)), *(f"{patient}_0" for patient in few)]
    for seed in range(20):
        read = to_read(others, [], 0.2, PATIENT_OF, most=100, seed=seed)
        assert {PATIENT_OF(case) for case in read} == {many, *few}
        assert choose(all_with(read), ["liver"], 0.2, PATIENT_OF).folds


def test_what_was_missed_of_known_patients_is_not_lost_among_what_was_learned():
    patients = above(0.2, 100, form="p{}")
    learned = [f"{patient}_{number}" for patient in patients for number in range(9)]
    refused = {f"{patient}_9" for patient in patients}
    assert len(to_read({*learned, *refused}, learned, 0.2, PATIENT_OF, most=100, seed=0) & refused) == 50


def test_a_patient_of_whom_a_case_was_learned_is_read_to_be_trained_on():
    (patient,) = below(0.2, 1, form="p{}")
    others = [f"{patient}_{moment}" for moment in range(50)]
    assert len(to_read(others, [f"{patient}_gone"], 0.2, PATIENT_OF, most=40, seed=0)) == 40
    assert len(to_read(others, [], 0.2, PATIENT_OF, most=40, seed=0)) == MAX_READ, "he validates"


def test_what_could_publish_nothing_is_said_before_anything_is_read():
    held, rest = below(0.2, 3), above(0.2, 5)
    assert obstacle([*held, *rest], 0.2, str, []) is None
    assert obstacle([], 0.2, str, []).startswith("no labels: save a label first")
    assert obstacle(rest[:2], 0.2, str, []).endswith("at least 3 patients or cases, found 2")
    assert obstacle([*held[:2], rest[0]], 0.2, str, []).endswith("label 1 more")
    assert obstacle(held, 0.2, str, []).startswith("no case is left to train on")
    assert obstacle(rest, 0.2, str, rest[:3]).endswith("trained on the others; label 1 more")
    assert obstacle(rest[:3], 0.2, str, []) is None


def test_three_patients_below_the_fraction_are_enough():
    held, rest = below(0.2, 3), above(0.2, 5)
    choice = choose(all_with([*held, *rest]), ["liver"], 0.2)
    assert (choice.method, choice.folds) == ("held out", ())
    assert set(choice.validation) == set(held)
    assert set(choice.training) == set(rest)


def test_with_fewer_cases_are_left_out_and_the_held_ones_still_count():
    held, rest = below(0.2, 2), above(0.2, 3)
    choice = choose(all_with([*held, *rest]), ["liver"], 0.2)
    assert choice.method == "leave one out"
    assert set(choice.validation) == set(held)
    assert sorted(itertools.chain(*choice.folds)) == sorted(rest)
    assert [len(fold) for fold in choice.folds] == [1, 1, 1]


def test_many_cases_are_left_out_several_at_a_time():
    choice = choose(all_with(above(0.2, 10)), ["liver"], 0.2)
    assert sorted(map(len, choice.folds)) == [5, 5]


def test_what_the_serving_version_was_trained_on_is_not_left_out():
    old, new = above(0.2, 7)[:4], above(0.2, 7)[4:]
    choice = choose(all_with([*old, *new]), ["liver"], 0.2, trained_before=old)
    assert sorted(itertools.chain(*choice.folds)) == sorted(new)
    assert set(choice.training) == {*old, *new}


def test_a_case_that_was_trained_on_never_validates():
    held, rest = below(0.2, 4), above(0.2, 5)
    choice = choose(all_with([*held, *rest]), ["liver"], 0.2, trained_before=held[:1])
    assert set(choice.validation) == set(held[1:])
    assert held[0] in choice.training


def test_a_label_that_no_held_case_has_is_left_out_for():
    held, rest = below(0.2, 4), above(0.2, 4)
    labels = {**all_with(held), **all_with(rest, "liver", "spleen")}
    assert choose(labels, ["liver"], 0.2).method == "held out"
    assert choose(labels, ["liver", "spleen"], 0.2).method == "leave one out"


def test_of_many_held_cases_a_few_decide_among_them_every_label():
    held = below(0.2, 30)
    rare = held[-1]
    labels = {**all_with([*held, *above(0.2, 3)]), rare: ("liver", "spleen")}
    choice = choose(labels, ["liver", "spleen"], 0.2)
    assert len(choice.validation) == MAX_CASES
    assert rare in choice.validation
    assert choice.method == "held out"


def test_more_than_four_labels_have_three_cases_each_whatever_the_bound():
    held, names = below(0.2, 18), ("a", "b", "c", "d", "e", "f")
    labels = {case: (names[number // 3],) for number, case in enumerate(held)}
    choice = choose({**labels, **all_with(above(0.2, 3), *names)}, names, 0.2)
    assert len(choice.validation) == 18 > MAX_CASES


def test_the_held_cases_beyond_the_bound_are_not_trained_on():
    held, rest = below(0.2, 20), above(0.2, 3)
    choice = choose(all_with([*held, *rest]), ["liver"], 0.2)
    assert set(choice.training) == set(rest)


def test_stacks_of_one_patient_are_never_apart():
    ids = [f"p{number}_{moment}" for number in range(25) for moment in ("ED", "ES")]
    choice = choose(all_with(ids), ["liver"], 0.2, PATIENT_OF)
    sides = [{PATIENT_OF(case) for case in part} for part in (choice.training, choice.validation)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    few = choose(all_with(ids[:6]), ["liver"], 1e-9, PATIENT_OF)
    assert [{PATIENT_OF(case) for case in fold} for fold in few.folds]
    for fold in few.folds:
        assert len({PATIENT_OF(case) for case in fold}) == 1
        assert len(fold) == 2


@pytest.mark.parametrize(("patients", "images"), [(10, 12), (20, 12), (30, 13), (4, 40)])
def test_many_images_of_a_patient_leave_room_for_other_patients(patients, images):
    ids = [f"p{patient}_{image}" for patient in range(patients) for image in range(images)]
    choice = choose(all_with(ids), ["liver"], 0.2, PATIENT_OF)
    judges = {PATIENT_OF(case) for case in choice.judged}
    held = {PATIENT_OF(case) for case in choice.validation}
    assert len(judges) >= MIN_GROUPS
    assert held == {f"p{patient}" for patient in range(patients) if case_hash(f"p{patient}") < 0.2}


@given(st.integers(3, 12), st.integers(1, 9), st.randoms(use_true_random=False))
def test_nobody_is_judged_by_a_model_that_was_trained_on_him(patients, images, random):
    ids = [f"p{patient}_{image}" for patient in range(patients) for image in range(images)]
    random.shuffle(ids)
    try:
        choice = choose(all_with(ids[1:]), ["liver"], 0.2, PATIENT_OF)
    except TrainingError:
        return
    for fold in choice.folds:
        kept = without_patients_of(choice.training, fold, PATIENT_OF)
        assert kept
        judged = {PATIENT_OF(case) for case in fold}
        assert not judged & {PATIENT_OF(case) for case in kept}
    held = {PATIENT_OF(case) for case in choice.validation}
    assert not held & {PATIENT_OF(case) for case in choice.training}


def test_a_patient_one_stack_of_whom_was_trained_on_does_not_validate_with_the_other():
    (patient,) = below(0.2, 1, form="p{}")
    choice = choose(
        all_with([f"{patient}_ED", f"{patient}_ES", *above(0.2, 4)]),
        ["liver"],
        0.2,
        PATIENT_OF,
        trained_before=[f"{patient}_ED"],
    )
    assert f"{patient}_ES" in choice.training


@pytest.mark.parametrize(
    ("case_id", "patient", "expected"),
    [("p7_ED", PATIENT, "p7"), ("other", PATIENT, "other"), ("p7_ED", None, "p7_ED"), ("_x", "^(a?)_", "_x")],
)
def test_the_patient_is_the_group_of_the_pattern(case_id, patient, expected):
    assert grouping(patient, {})(case_id) == expected


def test_whom_a_case_is_of_is_better_known_to_the_datastore_than_told_by_its_id():
    group_of = grouping(PATIENT, {"p7_ED": "x", "1.2.3": "x"})
    assert [group_of(case) for case in ("p7_ED", "1.2.3", "p7_ES", "1.2.4")] == ["x", "x", "p7", "1.2.4"]


def test_of_the_cases_that_could_judge_so_many_are_read_of_as_many_patients_as_there_are():
    ids = [f"p{patient}_{image}" for patient in range(4) for image in range(40)]
    first = first_held(ids, PATIENT_OF)
    assert (len(first), first <= set(ids)) == (MAX_READ, True)
    assert {PATIENT_OF(case) for case in first} == {"p0", "p1", "p2", "p3"}
    assert first_held(ids[::-1], PATIENT_OF) == first
    assert first_held(ids[:MAX_READ], PATIENT_OF) == set(ids[:MAX_READ])


@pytest.mark.parametrize("ids", [[], ["only"], ["one", "two"], ["p1_ED", "p1_ES", "p2_ED", "p2_ES"]])
def test_what_the_gate_could_never_publish_is_not_begun(ids):
    count = len({PATIENT_OF(case) for case in ids})
    with pytest.raises(TrainingError, match=f"at least {MIN_GROUPS} patients or cases, found {count}"):
        choose(all_with(ids), ["liver"], 0.2, PATIENT_OF)


@pytest.mark.parametrize(("held", "new"), [(0, 0), (0, 2), (2, 0), (1, 1)])
def test_too_few_that_what_serves_has_not_seen_cannot_decide(held, new):
    old = above(0.2, 4)
    ids = [*old, *above(0.2, 4 + new)[4:], *below(0.2, held)]
    with pytest.raises(TrainingError, match=f"{held + new} of at least 3 .* label {3 - held - new} more"):
        choose(all_with(ids), ["liver"], 0.2, trained_before=old)
    choose(all_with(above(0.2, 7 - held) + below(0.2, held)), ["liver"], 0.2, trained_before=old)


def test_a_first_training_too_short_of_cases_does_not_speak_of_a_version_that_serves():
    with pytest.raises(
        TrainingError, match=r"2 of at least 3 .* the others are to be trained on; label 1 more"
    ):
        choose(all_with([*below(0.2, 2), *above(0.2, 1)]), ["liver"], 0.2)


def test_where_all_validate_there_is_nothing_to_train_on():
    with pytest.raises(TrainingError, match="label one more"):
        choose(all_with(below(0.5, 4)), ["liver"], 0.5)


def test_case_hashes_spread_over_the_unit_interval():
    hashes = np.array([case_hash(f"case{index}") for index in range(2000)])
    assert hashes.min() >= 0
    assert hashes.max() < 1
    counts, _ = np.histogram(hashes, bins=10, range=(0, 1))
    assert counts.min() > 140
