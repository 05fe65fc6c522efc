"""Prompts sorted by slice."""

import pytest

from lib.prompts.promptset import Box, PromptSet
from lib.prompts.slice_plan import SlicePrompt, plan_slices

SHAPE = (40, 30, 20)


def test_points_are_sorted_by_slice_with_their_sign() -> None:
    prompts = PromptSet(positive_ijk=((1, 2, 3), (4, 5, 3)), negative_ijk=((6, 7, 3), (8, 9, 10)))
    plan = plan_slices(prompts, 2, SHAPE)
    assert plan.prompts == {
        3: SlicePrompt(((1, 2, 1), (4, 5, 1), (6, 7, 0))),
        10: SlicePrompt(((8, 9, 0),)),
    }
    assert plan.bounds == range(20)
    assert plan.windows == {}
    assert (plan.prompts[3].is_seed, plan.prompts[10].is_seed) == (True, False)


@pytest.mark.parametrize(
    ("axis", "index", "in_plane"), [(0, 1, (2, 3, 1)), (1, 2, (1, 3, 1)), (2, 3, (1, 2, 1))]
)
def test_any_axis_can_be_sliced(axis: int, index: int, in_plane: tuple[int, int, int]) -> None:
    plan = plan_slices(PromptSet(positive_ijk=((1, 2, 3),)), axis, SHAPE)
    assert plan.prompts == {index: SlicePrompt((in_plane,))}
    assert plan.bounds == range(SHAPE[axis])


def test_a_deep_box_marks_its_middle_slice_and_bounds_the_object() -> None:
    plan = plan_slices(PromptSet(boxes=(Box((10, 5, 4), (30, 9, 9)),)), 2, SHAPE)
    assert plan.prompts == {6: SlicePrompt((), (10, 5, 30, 9))}
    assert plan.prompts[6].is_seed
    assert plan.bounds == range(4, 9)
    assert plan.windows == dict.fromkeys(range(4, 9), (8, 4, 32, 10))


def test_a_flat_box_bounds_its_own_slice_only() -> None:
    plan = plan_slices(PromptSet(boxes=(Box((10, 5, 4), (30, 9, 5)),)), 2, SHAPE)
    assert plan.prompts == {4: SlicePrompt((), (10, 5, 30, 9))}
    assert plan.bounds == range(20)
    assert plan.windows == {4: (8, 4, 32, 10)}


def test_a_positive_click_outside_a_box_widens_it_on_its_slice_alone() -> None:
    prompts = PromptSet(((35, 2, 6),), ((1, 1, 7),), (Box((10, 5, 4), (30, 9, 9)),))
    windows = plan_slices(prompts, 2, SHAPE).windows
    assert windows.pop(6) == (8, 2, 36, 10)
    assert windows == dict.fromkeys((4, 5, 7, 8), (8, 4, 32, 10))


def test_the_margin_ends_at_the_volume() -> None:
    plan = plan_slices(PromptSet(boxes=(Box((0, 1, 0), (39, 30, 2)),)), 2, SHAPE)
    assert plan.windows[0] == (0, 0, 40, 30)


def test_several_boxes_are_enclosed() -> None:
    boxes = (Box((10, 10, 2), (20, 20, 5)), Box((22, 8, 3), (30, 12, 4)), Box((0, 0, 8), (10, 10, 12)))
    plan = plan_slices(PromptSet(boxes=boxes), 2, SHAPE)
    assert plan.prompts == {3: SlicePrompt((), (10, 8, 30, 20)), 9: SlicePrompt((), (0, 0, 10, 10))}
    assert plan.bounds == range(2, 12)
    assert plan.windows[2] == (9, 9, 21, 21)
    assert plan.windows[3] == (9, 7, 31, 21)
    assert 6 not in plan.windows


def test_clicks_and_box_of_one_slice_belong_together() -> None:
    prompts = PromptSet(((12, 12, 3),), ((15, 15, 3),), (Box((10, 10, 2), (20, 20, 5)),))
    plan = plan_slices(prompts, 2, SHAPE)
    assert plan.prompts == {3: SlicePrompt(((12, 12, 1), (15, 15, 0)), (10, 10, 20, 20))}
