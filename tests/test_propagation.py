"""Carrying, with a real segmentation rule in the model's place: a threshold, grown from the previous mask."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lib.propagation import (
    LEAST_REACH,
    MISSING_REACH,
    REACH,
    SAME,
    CarryLimits,
    CarryStep,
    PlaneMask,
    carry,
    connected,
    continues,
    overlap,
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


BAR, BAR_AND_LEAK = disc(6.0), disc(6.0) | disc(6.0, x=24.0)
LOOSE = CarryLimits(min_overlap=0.1, max_growth=9.0)


class Trimmer:
    """Answers each step with the disc alone. Keeps the slices that it was asked and where they came from."""

    def __init__(self, inside: np.ndarray = BAR) -> None:
        self.inside = inside
        self.asked: list[int] = []
        self.origins: dict[int, int] = {}

    def __call__(self, steps: Sequence[CarryStep]) -> list[PlaneMask | None]:
        self.asked += [step.index for step in steps]
        self.origins |= {step.index: step.origin for step in steps}
        return [plane_mask(self.inside) for _ in steps]


def leaking(*slices: int) -> dict[int, PlaneMask]:
    return {index: plane_mask(BAR_AND_LEAK) for index in slices}


def changed(found: Mapping[int, PlaneMask], earlier: Mapping[int, PlaneMask]) -> list[int]:
    return sorted(index for index in found if found[index] is not earlier.get(index))


def test_a_correction_spreads_while_there_is_something_to_correct() -> None:
    """Slices 8 to 12 have leaked; on 13 the object is as the correction says already."""
    earlier = {**{index: plane_mask(BAR) for index in range(4, 18)}, **leaking(*range(8, 13))}
    trimmer = Trimmer()
    found = revise(earlier, {10: plane_mask(BAR)}, (), range(20), trimmer, LOOSE)
    assert changed(found, earlier) == [8, 9, 10, 11, 12]
    assert sorted(trimmer.asked) == [7, 8, 9, 11, 12, 13]
    assert sorted(found) == list(range(4, 18))


@pytest.mark.parametrize("moved", [0.5, 6.0])
def test_what_is_nearly_the_same_is_left_as_it_was(moved: float) -> None:
    earlier = {index: plane_mask(disc(6.0, x=16 + moved)) for index in range(9)}
    corrected = plane_mask(BAR)
    found = revise(earlier, {4: corrected}, (), range(9), Trimmer(), LOOSE)
    is_same = overlap(corrected, earlier[3]) >= SAME
    assert is_same is (moved == 0.5)
    assert changed(found, earlier) == ([4] if is_same else list(range(9)))


def test_a_correction_ends_at_its_reach_in_what_was_found_before() -> None:
    earlier = leaking(*range(30))
    found = revise(earlier, {15: plane_mask(BAR)}, (), range(30), Trimmer(), LOOSE)
    assert changed(found, earlier) == list(range(15 - REACH, 15 + REACH + 1))
    assert REACH <= 10, "promised: slices more than ten away stay"


def test_a_correction_does_not_go_over_slices_that_were_marked() -> None:
    earlier = leaking(*range(20))
    trimmer = Trimmer()
    found = revise(earlier, {10: plane_mask(BAR)}, (8, 10, 12), range(20), trimmer, LOOSE)
    assert changed(found, earlier) == [9, 10, 11]
    assert sorted(trimmer.asked) == [9, 11]


def test_a_correction_keeps_to_the_bounds() -> None:
    earlier = leaking(*range(20))
    found = revise(earlier, {10: plane_mask(BAR)}, (), range(9, 12), Trimmer(), LOOSE)
    assert changed(found, earlier) == [9, 10, 11]


def test_none_ends_a_front_and_leaves_the_slice_as_it_was() -> None:
    earlier = leaking(*range(20))

    def not_beyond_12(steps: Sequence[CarryStep]) -> list[PlaneMask | None]:
        return [plane_mask(BAR) if step.index <= 12 else None for step in steps]

    found = revise(earlier, {10: plane_mask(BAR)}, (), range(20), not_beyond_12, LOOSE)
    assert changed(found, earlier) == list(range(4, 13))


def test_none_ends_a_front_of_carrying_too() -> None:
    def not_beyond_5(steps: Sequence[CarryStep]) -> list[PlaneMask | None]:
        return [plane_mask(BAR) if step.index <= 5 else None for step in steps]

    assert sorted(carry({3: plane_mask(BAR)}, range(9), not_beyond_5)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("gap", [1, 2, 4, 7])
@pytest.mark.parametrize("direction", [-1, 1])
def test_where_nothing_was_found_the_object_goes_on_about_as_far_as_it_was_missing(
    gap: int, direction: int
) -> None:
    earlier = {index: plane_mask(BAR) for index in range(28, 33)}
    click = 30 + direction * (2 + gap)
    found = revise(earlier, {click: plane_mask(BAR)}, (), range(60), Trimmer())
    farthest = max((index - 30) * direction for index in found)
    assert farthest == 2 + gap + max(LEAST_REACH, MISSING_REACH * gap)
    assert {index for index in range(60) if 0 <= (index - 30) * direction <= farthest} <= found.keys()
    assert changed(found, earlier) == sorted(found.keys() - earlier.keys())


def test_a_click_on_the_objects_last_slice_takes_it_a_few_slices_further_only() -> None:
    earlier = {index: plane_mask(BAR) for index in range(10)}
    found = revise(earlier, {9: plane_mask(disc(5.0))}, (), range(40), Trimmer())
    assert max(found) == 9 + LEAST_REACH


def test_without_any_earlier_object_it_goes_on_to_its_end() -> None:
    found = revise({}, {20: plane_mask(BAR)}, (), range(40), Trimmer())
    assert sorted(found) == list(range(40))


def test_an_empty_corrected_slice_is_gone_and_sends_nothing_on() -> None:
    earlier = leaking(*range(10))
    trimmer = Trimmer()
    found = revise(earlier, {5: plane_mask(NOTHING)}, (5,), range(10), trimmer)
    assert sorted(found) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert trimmer.asked == []
    assert sorted(connected(found, [2])) == [0, 1, 2, 3, 4]


def test_a_tiny_slice_far_from_a_correction_stays() -> None:
    pixel = NOTHING.copy()
    pixel[16, 16] = True
    earlier = {**leaking(*range(19)), 19: plane_mask(pixel)}
    found = revise(earlier, {3: plane_mask(BAR)}, (), range(20), Trimmer(), LOOSE)
    assert found[19] is earlier[19]


@pytest.mark.parametrize(
    ("marked", "kept"),
    [
        ([4], [3, 4, 5]),
        ([8], [8]),
        ([3, 8], [3, 4, 5, 8]),
        ([0, 6, 11], [0, 1]),
        ([], []),
    ],
)
def test_connected_keeps_the_runs_with_a_mark(marked: list[int], kept: list[int]) -> None:
    found = {index: plane_mask(BAR) for index in (0, 1, 3, 4, 5, 8)}
    answer = connected(found, marked)
    assert sorted(answer) == kept
    assert all(answer[index] is found[index] for index in kept)


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_connected_in_every_case(slices: set[int], marked: set[int]) -> None:
    found = {index: plane_mask(BAR) for index in slices}
    kept = connected(found, marked).keys()
    for index in slices:
        run = {index}
        for direction in (-1, 1):
            other = index + direction
            while other in slices:
                run.add(other)
                other += direction
        assert (index in kept) is bool(run & marked)


def test_every_step_knows_where_it_began() -> None:
    trimmer = Trimmer()
    carry({3: plane_mask(BAR), 12: plane_mask(BAR)}, range(16), trimmer)
    assert trimmer.origins == {
        **dict.fromkeys([0, 1, 2, 4, 5, 6, 7], 3),
        **dict.fromkeys([8, 9, 10, 11, 13, 14, 15], 12),
    }
