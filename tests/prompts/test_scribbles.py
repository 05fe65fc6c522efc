"""Strokes become clicks."""

import numpy as np

from lib.prompts.coordinates import MAX_POINTS
from lib.prompts.scribbles import POINTS_PER_SLICE, spread_points, stroke_points

SPACING = (1.0, 1.0, 3.0)


def test_the_first_click_is_the_most_interior_one() -> None:
    plane = np.zeros((20, 20), bool)
    plane[2:9, 3:10] = True
    plane[15, :] = True
    assert spread_points(plane, (1.0, 1.0), 1) == [(5, 6)]


def test_the_next_are_far_from_each_other_in_mm() -> None:
    plane = np.ones((11, 11), bool)
    first, second = spread_points(plane, (1.0, 1.0), 2)
    assert (first, second) == ((5, 5), (0, 0))
    stretched = spread_points(plane, (1.0, 10.0), 3)
    assert {v for _, v in stretched} == {0, 5, 10}


def test_a_short_stroke_gives_each_of_its_voxels_once() -> None:
    plane = np.zeros((5, 5), bool)
    plane[1, 1:4] = True
    assert sorted(spread_points(plane, (1.0, 1.0), 8)) == [(1, 1), (1, 2), (1, 3)]
    assert spread_points(np.zeros((5, 5), bool), (1.0, 1.0), 8) == []


def test_points_lie_on_their_own_strokes_and_are_few() -> None:
    positive, negative = np.zeros((2, 30, 40, 20), bool)
    positive[3:9, 4:20, 5] = True
    positive[10, 4:6, 7] = True
    negative[20:25, 30:33, 5] = True
    clicks = stroke_points(positive, negative, 2, SPACING)
    assert all(positive[point] for point in clicks[0])
    assert all(negative[point] for point in clicks[1])
    assert [sum(point[2] == index for point in clicks[0]) for index in (5, 7)] == [POINTS_PER_SLICE, 2]
    assert len(clicks[1]) == POINTS_PER_SLICE
    assert clicks == stroke_points(positive, negative, 2, SPACING)


def test_slices_are_counted_along_the_axis() -> None:
    positive = np.zeros((6, 7, 8), bool)
    positive[2, :, :] = True
    none = np.zeros_like(positive)
    assert len(stroke_points(positive, none, 0, SPACING)[0]) == POINTS_PER_SLICE
    assert len(stroke_points(positive, none, 1, SPACING)[0]) == 7 * POINTS_PER_SLICE


def test_too_many_are_thinned_evenly_and_no_sort_goes_missing() -> None:
    positive, negative = np.zeros((2, 10, 10, 400), bool)
    negative[2:8, 2:8, :] = True
    positive[0, 0, 200] = True
    clicks = stroke_points(positive, negative, 2, SPACING)
    assert clicks[0] == ((0, 0, 200),)
    assert MAX_POINTS - 50 < len(clicks[1]) <= MAX_POINTS - 1
    slices = sorted({point[2] for point in clicks[1]})
    assert (slices[0], slices[-1]) == (0, 399)
    assert max(np.diff(slices)) <= min(np.diff(slices)) + 1


def test_all_voxels_painted_stay_within_the_limit() -> None:
    half = np.zeros((8, 8, 300), bool)
    half[:4] = True
    clicks = stroke_points(half, ~half, 2, SPACING)
    assert len(clicks[0]) == len(clicks[1])
    assert 900 < sum(map(len, clicks)) <= MAX_POINTS
