"""Carrying, with a real segmentation rule in the model's place: a threshold, grown from the previous mask."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage

from lib.propagation import (
    LEAST_REACH,
    MISSING_REACH,
    REACH,
    CarryLimits,
    CarryStep,
    PlaneMask,
    carry,
    connected,
    continues,
    revise,
)

SIDE = 32


def plane_mask(inside: np.ndarray, predicted_iou: float = 0.9) -> PlaneMask:
    return PlaneMask(torch.from_numpy(np.where(inside, 4.0, -4.0).astype(np.float32)), predicted_iou)


def disc(radius: float, x: float = 16.0, y: float = 16.0) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


NOTHING = np.zeros((SIDE, SIDE), dtype=bool)


class RegionGrower:
    """Segments slices (K, SIDE, SIDE): the bright regions that touch the previous mask. Keeps its calls."""

    def __init__(self, slices: np.ndarray) -> None:
        self.slices = slices
        self.calls: list[list[tuple[int, int]]] = []

    def __call__(self, steps: Sequence[CarryStep]) -> list[PlaneMask]:
        self.calls.append([(step.index, step.direction) for step in steps])
        return [self.grow(step.index, step.previous.inside) for step in steps]

    def grow(self, index: int, start: np.ndarray) -> PlaneMask:
        regions, _ = ndimage.label(self.slices[index] > 0.5)
        touched = [region for region in np.unique(regions[start]) if region]
        return plane_mask(np.isin(regions, touched))

    def seed(self, index: int) -> dict[int, PlaneMask]:
        return {index: self.grow(index, disc(1.0))}


def ball(slice_count: int = 24, centre: int = 12, radius: float = 9.0) -> np.ndarray:
    """A bright ball in the middle, and a bright rod in the corner that is not part of it."""
    planes = [
        disc(np.sqrt(radius**2 - (index - centre) ** 2)) if abs(index - centre) < radius else NOTHING
        for index in range(slice_count)
    ]
    volume = np.stack(planes).astype(float)
    volume[:, 1:4, 1:4] = 1.0
    return volume


def carried(volume: np.ndarray, found: dict[int, PlaneMask]) -> np.ndarray:
    result = np.zeros(volume.shape, dtype=bool)
    for index, mask in found.items():
        result[index] = mask.inside
    return result


def test_one_seed_gives_the_whole_ball_and_nothing_else() -> None:
    volume = ball()
    grower = RegionGrower(volume)
    found = carry(grower.seed(12), range(24), grower, CarryLimits(min_area_pixels=1, min_overlap=0.3))
    expected = volume > 0.5
    expected[:, 1:4, 1:4] = False
    assert np.array_equal(carried(volume, found), expected)


def test_both_directions_share_one_call() -> None:
    grower = RegionGrower(ball())
    carry(grower.seed(12), range(24), grower)
    assert grower.calls[0] == [(11, -1), (13, 1)]
    assert grower.calls[3] == [(8, -1), (16, 1)]


def test_the_first_slices_may_be_the_volumes_last() -> None:
    grower = RegionGrower(np.ones((3, SIDE, SIDE)))
    found = carry(grower.seed(0), range(3), grower)
    assert sorted(found) == [0, 1, 2]
    assert grower.calls == [[(1, 1)], [(2, 1)]]


@pytest.mark.parametrize(("second", "calls"), [(10, 5), (11, 5)])
def test_two_seeds_meet_half_way_and_no_slice_is_decoded_twice(second: int, calls: int) -> None:
    """Slices 2 and `second` of 13 bright ones: an odd and an even number of slices between them."""
    grower = RegionGrower(np.ones((13, SIDE, SIDE)))
    found = carry({**grower.seed(2), **grower.seed(second)}, range(13), grower)
    decoded = [step for call in grower.calls for step in call]
    assert sorted(found) == list(range(13))
    assert sorted(index for index, _ in decoded) == sorted({*range(13)} - {2, second})
    upward = [index for index, direction in decoded if direction == 1 and index < second]
    downward = [index for index, direction in decoded if direction == -1 and index > 2]
    assert max(upward) < min(downward)
    assert abs(len(upward) - len(downward)) <= 1
    assert len(grower.calls) <= calls


def test_where_one_front_loses_the_object_the_other_goes_on() -> None:
    """The dark slice 4 ends the front from slice 2 at once; the one from slice 9 comes all the way to it."""
    volume = np.ones((12, SIDE, SIDE))
    volume[4] = 0.0
    grower = RegionGrower(volume)
    found = carry({**grower.seed(2), **grower.seed(9)}, range(12), grower)
    assert sorted(found) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


def test_of_two_fronts_for_one_slice_the_second_tries_when_the_first_fails() -> None:
    wanted = disc(6.0)

    def only_from_above(steps: Sequence[CarryStep]) -> list[PlaneMask]:
        return [plane_mask(wanted if step.direction == -1 else NOTHING) for step in steps]

    found = carry({1: plane_mask(wanted), 3: plane_mask(wanted)}, range(1, 4), only_from_above)
    assert sorted(found) == [1, 2, 3]


def test_bounds_hold_but_never_remove_a_seed() -> None:
    grower = RegionGrower(np.ones((20, SIDE, SIDE)))
    found = carry({**grower.seed(8), **grower.seed(15)}, range(6, 11), grower)
    assert sorted(found) == [6, 7, 8, 9, 10, 15]


def test_a_seed_without_an_outline_stays_alone() -> None:
    grower = RegionGrower(np.ones((9, SIDE, SIDE)))
    empty = plane_mask(NOTHING)
    assert carry({4: empty}, range(9), grower) == {4: empty}
    assert grower.calls == []


def test_no_seed_gives_nothing() -> None:
    assert carry({}, range(9), RegionGrower(np.ones((9, SIDE, SIDE)))) == {}


LIMITS = CarryLimits(min_quality=0.5, min_overlap=0.5, max_growth=2.0, min_area_pixels=4)


@pytest.mark.parametrize(
    ("answer", "goes_on"),
    [
        pytest.param(plane_mask(disc(8.0)), True, id="same"),
        pytest.param(plane_mask(disc(7.0, x=17.0)), True, id="smaller and moved"),
        pytest.param(plane_mask(NOTHING), False, id="empty"),
        pytest.param(plane_mask(disc(1.0, x=16.5)), False, id="too small"),
        pytest.param(plane_mask(disc(8.0), 0.39), False, id="the model doubts it"),
        pytest.param(plane_mask(disc(8.0), 0.41), True, id="the model just believes it"),
        pytest.param(plane_mask(disc(8.0, x=25.0)), False, id="elsewhere"),
        pytest.param(plane_mask(disc(12.0)), False, id="leaked"),
    ],
)
def test_continues(answer: PlaneMask, goes_on: bool) -> None:
    step = CarryStep(5, 1, previous=plane_mask(disc(8.0), 0.6), seed=plane_mask(disc(9.0), 0.8))
    assert continues(step, answer, LIMITS) is goes_on


def test_quality_is_compared_with_the_fronts_own_seed() -> None:
    """The seed on slice 8 was rated 0.4, so 0.35 is enough for its fronts, but not for those from slice 2."""
    limits = CarryLimits(min_quality=0.5)
    inside = disc(8.0)
    seeds = {2: plane_mask(inside, 0.9), 8: plane_mask(inside, 0.4)}
    found = carry(seeds, range(12), lambda steps: [plane_mask(inside, 0.35) for _ in steps], limits)
    assert sorted(found) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


COUNT = 40
SMALL, LARGE = plane_mask(disc(5.0)), plane_mask(disc(9.0))


class Reviser:
    """Says `answer` on every slice of `where`, and nothing elsewhere; keeps which slices it was asked."""

    def __init__(self, answer: PlaneMask, where: range = range(COUNT)) -> None:
        self.answer, self.where = answer, where
        self.asked: list[int] = []

    def __call__(self, steps: Sequence[CarryStep]) -> list[PlaneMask | None]:
        self.asked += [step.index for step in steps]
        return [self.answer if step.index in self.where else None for step in steps]


def known(*slices: int) -> dict[int, PlaneMask]:
    return dict.fromkeys(slices, SMALL)


def changed(found: dict[int, PlaneMask], earlier: dict[int, PlaneMask]) -> list[int]:
    return sorted(index for index in {*found, *earlier} if found.get(index) is not earlier.get(index))


def test_a_correction_spreads_as_far_as_it_may_and_leaves_the_rest() -> None:
    earlier = known(*range(5, 35))
    found = revise(earlier, {20: LARGE}, {20}, range(COUNT), Reviser(LARGE))
    assert changed(found, earlier) == list(range(20 - REACH, 20 + REACH + 1))
    assert all(found[index] is SMALL for index in range(5, 20 - REACH))


def test_a_correction_ends_where_there_is_nothing_to_correct() -> None:
    earlier = known(*range(5, 35))
    found = revise(earlier, {20: LARGE}, {20}, range(COUNT), Reviser(LARGE, range(19, 23)))
    assert changed(found, earlier) == [19, 20, 21, 22]


def test_a_correction_ends_where_it_agrees_with_what_was_there() -> None:
    earlier = known(*range(5, 35)) | {22: plane_mask(disc(9.0)), 23: plane_mask(disc(9.0))}
    found = revise(earlier, {20: LARGE}, {20}, range(COUNT), Reviser(LARGE))
    assert changed(found, earlier) == list(range(20 - REACH, 22))


def test_a_correction_does_not_touch_marked_slices_or_cross_them() -> None:
    earlier = known(*range(5, 35))
    found = revise(earlier, {20: LARGE}, {17, 20, 22}, range(COUNT), Reviser(LARGE))
    assert changed(found, earlier) == [18, 19, 20, 21]


def test_beyond_the_object_a_click_reaches_about_as_far_as_was_missing() -> None:
    earlier = known(*range(5, 11))
    model = Reviser(LARGE)
    found = revise(earlier, {14: LARGE}, {14}, range(COUNT), model)
    gap = 4
    assert sorted(found) == list(range(5, 14 + MISSING_REACH * gap + 1))
    near = revise(earlier, {11: LARGE}, {11}, range(COUNT), Reviser(LARGE))
    assert sorted(near) == list(range(5, 11 + LEAST_REACH + 1))


def test_nothing_earlier_bounds_nothing() -> None:
    found = revise({}, {14: LARGE}, {14}, range(COUNT), Reviser(LARGE))
    assert sorted(found) == list(range(COUNT))


def test_an_empty_correction_takes_its_slice_away() -> None:
    earlier = known(*range(5, 35))
    found = revise(earlier, {20: plane_mask(NOTHING)}, {20}, range(COUNT), Reviser(LARGE))
    assert sorted(found) == [*range(5, 20), *range(21, 35)]


def test_a_correction_stays_within_its_bounds() -> None:
    model = Reviser(LARGE)
    revise(known(*range(18, 23)), {20: LARGE}, {20}, range(18, 23), model)
    assert set(model.asked) <= {18, 19, 21, 22}


def test_runs_of_slices_without_a_mark_are_dropped() -> None:
    found = known(2, 3, 4, 7, 8, 12)
    assert sorted(connected(found, [3, 12])) == [2, 3, 4, 12]
    assert connected(found, []) == {}
    assert sorted(connected(found, [5])) == []


def test_an_answer_of_none_ends_a_front() -> None:
    model = Reviser(SMALL, range(10, 14))
    assert sorted(carry({12: SMALL}, range(COUNT), model)) == [10, 11, 12, 13]


@pytest.mark.parametrize("direction", [-1, 1])
def test_a_step_knows_where_it_came_from(direction: int) -> None:
    step = CarryStep(20 + direction, direction, SMALL, SMALL)
    assert step.origin == step.after(SMALL).origin == step.after(SMALL).after(SMALL).origin == 20
