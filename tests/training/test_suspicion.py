import pytest

from lib.training.suspicion import Agreement, Suspicion, still_suspicious, suspects


def found(values, label="liver", first=0):
    """Agreements without clicks; after them all agree."""
    return [Agreement(f"case{first + place}", label, dice, 0.9) for place, dice in enumerate(values)]


def clicked(values):
    """Agreements after clicks, alike without them."""
    return [Agreement(f"case{place}", "liver", 0.8, dice) for place, dice in enumerate(values)]


def test_a_label_that_clicks_do_not_lead_to_is_named():
    """Such as one of another image: without clicks it is as far off as the right label of a hard case."""
    dice = [0.87, 0.86, 0.75, 0.88, 0.85, 0.87, 0.84]
    assert suspects(clicked(dice)) == (Suspicion("case2", "liver", 0.75, 0.86, 3),)
    assert suspects(found(dice)) == ()
    assert suspects(clicked([0.87, 0.86, 0.78, 0.88, 0.85])) == (), "not far enough"


def test_a_label_of_another_structure_is_named_though_clicks_lead_to_it():
    one = [*found([0.8, 0.82, 0.79, 0.81, 0.84]), Agreement("other", "liver", 0.0, 0.95)]
    assert [(named.case_id, named.clicks) for named in suspects(one)] == [("other", 0)]


def test_who_is_named_twice_is_so_where_it_is_farthest_below():
    others = [Agreement(f"case{place}", "liver", 0.8, 0.9) for place in range(6)]
    assert suspects([*others, Agreement("x", "liver", 0.5, 0.7)]) == (Suspicion("x", "liver", 0.5, 0.8, 0),)
    assert suspects([*others, Agreement("x", "liver", 0.5, 0.3)]) == (Suspicion("x", "liver", 0.3, 0.9, 3),)


def test_the_one_far_below_the_others_is_named():
    assert suspects(found([0.8, 0.82, 0.79, 0.1, 0.81, 0.84])) == (
        Suspicion("case3", "liver", 0.1, pytest.approx(0.805)),
    )


def test_several_are_named_lowest_first():
    named = suspects(found([0.8, 0.82, 0.3, 0.1, 0.81, 0.84, 0.79]))
    assert [one.case_id for one in named] == ["case3", "case2"]


def run_that_found(*cases, looked_at=None, decision="published", **digests):
    named = [{"case_id": case, "label": "liver", "dice": 0.1} for case in cases]
    return {"decision": decision, "suspicious": named, "looked_at": looked_at, "label_digests": digests}


NIGHT = run_that_found("a", "b", looked_at=["a", "b", "c"], a="1", b="1", c="1")
ALL = {"a": "1", "b": "1", "c": "1", "d": "1"}


@pytest.mark.parametrize(
    "damage", [None, 7, "text", [7, None, {}], {"x": []}, [{"case_id": [], "label": {}}]]
)
@pytest.mark.parametrize("field", ["suspicious", "looked_at", "label_digests"])
def test_a_damaged_record_takes_nothing_of_the_others_away(field, damage):
    odd = {**run_that_found("d", looked_at=["d"], d="1"), field: damage}
    named = [row["case_id"] for row in still_suspicious([odd, NIGHT], ALL)]
    assert [case for case in named if case != "d"] == ["a", "b"]


@pytest.mark.parametrize(
    ("later", "current", "expected"),
    [
        ([], ALL, ["a", "b"]),
        ([run_that_found("d", looked_at=["d", "c"], d="1")], ALL, ["a", "b", "d"]),
        ([run_that_found(looked_at=["a", "d"])], ALL, ["b"]),
        ([run_that_found("a", looked_at=["a"], a="1")], ALL, ["b", "a"]),
        ([run_that_found(looked_at=["a"], decision="failed")], ALL, ["a", "b"]),
        ([run_that_found(looked_at=[])], ALL, ["a", "b"]),
        ([run_that_found("c", c="1")], ALL, ["c"]),
        ([], {**ALL, "a": "2"}, ["b"]),
        ([], {"a": "1"}, ["a"]),
    ],
    ids=[
        "the night's",
        "others were looked at",
        "not any more",
        "again",
        "a failed run says nothing",
        "nor does one with few cases",
        "an old record says all",
        "its label was changed",
        "its label has gone",
    ],
)
def test_what_is_suspicious_stays_so_until_somebody_looks_or_changes_it(later, current, expected):
    assert [row["case_id"] for row in still_suspicious([NIGHT, *later], current)] == expected


@pytest.mark.parametrize(
    "values",
    [
        [0.8, 0.81, 0.8, 0.79, 0.7],  # below, but not far
        [0.2, 0.9, 0.5, 0.7, 0.35, 0.6, 0.8],  # all differ a lot
        [0.8, 0.8, 0.8, 0.1],  # too few to know what is usual
        [0.1, 0.12, 0.09, 0.11, 0.05],  # a model that knows nothing yet
        [],
    ],
)
def test_nobody_is_named_without_a_reason(values):
    assert suspects(found(values)) == ()


def test_labels_are_compared_with_their_own_kind():
    easy, hard = found([0.9, 0.91, 0.92, 0.93, 0.94]), found([0.4, 0.42, 0.41, 0.4, 0.43], "vessel", 10)
    assert suspects([*easy, *hard]) == ()


def test_a_good_outlier_is_no_suspect():
    assert suspects(found([0.5, 0.52, 0.51, 0.5, 0.99])) == ()
