import pytest

from lib.training.suspicion import Agreement, Suspicion, suspects


def found(values, label="liver", first=0):
    return [Agreement(f"case{first + place}", label, dice) for place, dice in enumerate(values)]


def test_the_one_far_below_the_others_is_named():
    assert suspects(found([0.8, 0.82, 0.79, 0.1, 0.81, 0.84])) == (
        Suspicion("case3", "liver", 0.1, pytest.approx(0.805)),
    )


def test_several_are_named_lowest_first():
    named = suspects(found([0.8, 0.82, 0.3, 0.1, 0.81, 0.84, 0.79]))
    assert [one.case_id for one in named] == ["case3", "case2"]


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
