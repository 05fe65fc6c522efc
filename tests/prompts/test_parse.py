"""Requests as OHIF and 3D Slicer send them, and everything that must be refused."""

import math
from typing import Any

import numpy as np
import pytest

from lib.errors import InputError
from lib.prompts.coordinates import MAX_POINTS, Grid
from lib.prompts.parse import Drawn, parse_deepedit, parse_deepgrow, parse_deepgrow_2d, parse_segmentation
from lib.prompts.promptset import Box, MaskPrompt, PromptSet

SHAPE = (20, 30, 10)
GRID = Grid(SHAPE, 2)
LABELS = {"liver": 1, "spleen": 2}


def parse(**request: Any) -> PromptSet:
    return parse_deepgrow(request, GRID, LABELS)


class TestAccepted:
    def test_what_ohif_sends(self) -> None:
        prompts = parse(
            foreground=[[1, 2, 3], [4, 5, 6]],
            background=[[7, 8, 9]],
            result_extension=".nrrd",
            result_dtype="uint8",
            result_compress=False,
            restore_label_idx=False,
        )
        assert prompts == PromptSet(((1, 2, 3), (4, 5, 6)), ((7, 8, 9),))

    def test_what_slicer_sends(self) -> None:
        prompts = parse(
            label="spleen",
            foreground=[[1, 2, 3]],
            background=[],
            roi=[15, 3, 25, 5, 1, 8],
            device=["cuda", "cpu"],
            cache_transforms=True,
            client_id="user-xyz",
            slice=3,
        )
        assert prompts == PromptSet(((1, 2, 3),), (), (Box((3, 5, 1), (16, 26, 9)),), "spleen")

    @pytest.mark.parametrize(
        ("given", "voxel"), [(3.0, 3), (2.6, 3), (2.5, 3), (2.4, 2), (-0.4, 0), (19.4, 19)]
    )
    def test_fractions_go_to_the_nearest_voxel(self, given: float, voxel: int) -> None:
        assert parse(foreground=[[given, 0, 0]]).positive_ijk == ((voxel, 0, 0),)

    def test_a_box_alone(self) -> None:
        prompts = parse(roi=[3, 5, 2, 4, 0, 0])
        assert prompts.boxes == (Box((3, 2, 0), (6, 5, 1)),)
        assert prompts.label is None

    def test_a_box_that_sticks_out_is_clipped(self) -> None:
        assert parse(roi=[-4, 40, -1, 30, -3, 12]).boxes == (Box((0, 0, 0), SHAPE),)

    def test_background_points_beside_a_box(self) -> None:
        assert parse(roi=[3, 5, 2, 4, 0, 0], background=[[1, 1, 1]]).negative_ijk == ((1, 1, 1),)

    def test_the_corner_voxels(self) -> None:
        assert parse(foreground=[[0, 0, 0], [19, 29, 9]]).positive_ijk == ((0, 0, 0), (19, 29, 9))

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_no_label(self, nothing: str | None) -> None:
        assert parse(foreground=[[1, 1, 1]], label=nothing).label is None

    def test_as_many_points_as_allowed(self) -> None:
        assert len(parse(foreground=[[1, 1, 1]] * MAX_POINTS).positive_ijk) == MAX_POINTS


class TestRefused:
    @pytest.mark.parametrize("value", ["[[1,2,3]]", {"a": 1}, 5, True])
    def test_points_that_are_no_list(self, value: Any) -> None:
        with pytest.raises(InputError, match=r"foreground: .* allowed: a list of points"):
            parse(foreground=value)

    @pytest.mark.parametrize("point", [[], [1, 2], [1, 2, 3, 4], 7, None, "123", [[1, 2, 3]]])
    def test_points_of_the_wrong_length(self, point: Any) -> None:
        with pytest.raises(InputError, match=r"background\[1\]"):
            parse(foreground=[[1, 1, 1]], background=[[1, 1, 1], point])

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, "1", True, None, 10**400, [1], 1e300])
    def test_what_is_no_finite_number(self, number: Any) -> None:
        with pytest.raises(InputError, match=r"foreground\[0\]: .* allowed: finite numbers"):
            parse(foreground=[[1, number, 1]])

    @pytest.mark.parametrize(
        "point", [[20, 0, 0], [0, 30, 0], [0, 0, 10], [-1, 0, 0], [19.6, 0, 0], [0, 0, -0.6]]
    )
    def test_points_outside_name_the_ranges(self, point: list[float]) -> None:
        with pytest.raises(InputError, match=r"i 0\.\.19, j 0\.\.29, k 0\.\.9"):
            parse(foreground=[point])

    def test_an_unknown_label_names_the_known_ones(self) -> None:
        with pytest.raises(InputError, match="label: 'kidney' is not accepted; allowed: liver, spleen"):
            parse(foreground=[[1, 1, 1]], label="kidney")

    @pytest.mark.parametrize("label", [1, ["liver"], {"liver": 1}])
    def test_a_label_that_is_no_name(self, label: Any) -> None:
        with pytest.raises(InputError, match="label"):
            parse(foreground=[[1, 1, 1]], label=label)

    @pytest.mark.parametrize("split", [0, 400])
    def test_too_many_points(self, split: int) -> None:
        points = [[1, 1, 1]] * (MAX_POINTS + 1)
        with pytest.raises(InputError, match="at most 1000 points"):
            parse(foreground=points[split:], background=points[:split])

    @pytest.mark.parametrize(
        "request_",
        [{}, {"foreground": [], "background": []}, {"foreground": None}, {"label": "liver"}, {"roi": []}],
    )
    def test_empty_prompts(self, request_: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="at least one point"):
            parse(**request_)

    def test_one_voxel_inside_and_outside(self) -> None:
        with pytest.raises(InputError, match=r"background: \[1, 2, 3\] .* not marked as foreground too"):
            parse(foreground=[[5, 5, 5], [1, 2, 3]], background=[[1.2, 2, 3]])

    def test_background_points_alone(self) -> None:
        with pytest.raises(InputError, match="background"):
            parse(background=[[1, 1, 1]])

    @pytest.mark.parametrize(
        "roi", [[1, 2, 3], "1,2,3,4,5,6", 5, [1, 2, 3, 4, 5, math.nan], [0, 0, 0, 0, 0, "1"]]
    )
    def test_a_box_of_another_form(self, roi: Any) -> None:
        with pytest.raises(InputError, match="roi"):
            parse(foreground=[[1, 1, 1]], roi=roi)

    @pytest.mark.parametrize("roi", [[20, 25, 0, 5, 0, 5], [0, 5, -9, -1, 0, 5]])
    def test_a_box_beside_the_volume(self, roi: list[int]) -> None:
        with pytest.raises(InputError, match="meets the volume"):
            parse(roi=roi)

    @pytest.mark.parametrize(
        "roi", [[5, 5, 5, 5, 5, 5], [5, 5, 2, 9, 0, 4], [2, 9, 5, 5, 0, 4], [2, 9, 5.1, 5.2, 0, 4]]
    )
    def test_a_box_without_volume(self, roi: list[float]) -> None:
        with pytest.raises(InputError, match="a box that has a volume"):
            parse(foreground=[[1, 1, 1]], roi=roi)

    @pytest.mark.parametrize("number", [-1, 10, 40, 2.5, math.nan, math.inf, "3", True, [3]])
    def test_a_slice_that_is_not_there(self, number: Any) -> None:
        with pytest.raises(InputError, match=r"slice: .* allowed: a slice along k of the volume: 0\.\.9"):
            parse(foreground=[[1, 1, 1]], slice=number)

    def test_a_box_of_four_numbers_needs_a_slice(self) -> None:
        with pytest.raises(InputError, match="or 4 beside the slice"):
            parse(roi=[2, 9, 3, 8])


def mask_at(*voxels: tuple[int, int, int]) -> MaskPrompt:
    inside = np.zeros(SHAPE, bool)
    for voxel in voxels:
        inside[voxel] = True
    return MaskPrompt(inside)


class TestBoxes:
    def test_four_numbers_are_a_box_on_the_slice(self) -> None:
        assert parse(roi=[9, 2, 3, 8], slice=4).boxes == (Box((2, 3, 4), (10, 9, 5)),)

    @pytest.mark.parametrize(
        ("axis", "box"), [(0, Box((4, 2, 3), (5, 10, 9))), (1, Box((2, 4, 3), (10, 5, 9)))]
    )
    def test_the_slice_counts_along_the_axis_of_the_slices(self, axis: int, box: Box) -> None:
        request = {"roi": [2, 9, 3, 8], "slice": 4}
        assert parse_deepgrow(request, Grid(SHAPE, axis), LABELS).boxes == (box,)

    def test_one_slice_is_thick_enough_along_that_axis_only(self) -> None:
        flat = {"roi": [2, 9, 3, 8, 4, 4]}
        assert parse_deepgrow(flat, Grid(SHAPE, 2), LABELS).boxes == (Box((2, 3, 4), (10, 9, 5)),)
        with pytest.raises(InputError, match="a box that has a volume"):
            parse_deepgrow(flat, Grid(SHAPE, 0), LABELS)


class TestDrawn:
    def test_a_mask_alone_is_a_prompt(self) -> None:
        mask = mask_at((1, 2, 3))
        assert parse_deepgrow({}, GRID, LABELS, Drawn(mask=mask)) == PromptSet(mask=mask)

    def test_strokes_come_after_clicks(self) -> None:
        request = {"foreground": [[1, 1, 1]], "background": [[2, 2, 2]]}
        prompts = parse_deepgrow(request, GRID, LABELS, Drawn(((3, 3, 3),), ((4, 4, 4),)))
        assert prompts == PromptSet(((1, 1, 1), (3, 3, 3)), ((2, 2, 2), (4, 4, 4)))

    def test_strokes_of_the_background_alone_are_no_prompt(self) -> None:
        with pytest.raises(InputError, match="background"):
            parse_deepgrow({}, GRID, LABELS, Drawn(negative_ijk=((1, 1, 1),)))


class TestOneSlice:
    def test_only_what_is_on_the_slice_counts(self) -> None:
        request = {
            "slice": 4.0,
            "foreground": [[1, 1, 4], [2, 2, 5]],
            "background": [[3, 3, 4], [4, 4, 3]],
            "roi": [9, 2, 3, 8, 6, 1],
        }
        drawn = Drawn(mask=mask_at((1, 1, 4), (1, 1, 5)))
        prompts, index = parse_deepgrow_2d(request, GRID, LABELS, drawn)
        assert index == 4
        box = Box((2, 3, 4), (10, 9, 5))
        assert prompts == PromptSet(((1, 1, 4),), ((3, 3, 4),), (box,), None, mask_at((1, 1, 4)))

    def test_without_a_slice_all_prompts_count(self) -> None:
        prompts, index = parse_deepgrow_2d(
            {"foreground": [[1, 1, 4], [2, 2, 5]], "slice": None}, GRID, LABELS
        )
        assert (len(prompts.positive_ijk), index) == (2, None)

    @pytest.mark.parametrize(
        "request_",
        [
            {"foreground": [[1, 1, 4]]},
            {"foreground": [[1, 1, 4]], "background": [[1, 1, 5]]},
            {"roi": [2, 9, 3, 8, 0, 4]},
        ],
    )
    def test_a_slice_with_nothing_on_it(self, request_: dict[str, Any]) -> None:
        with pytest.raises(
            InputError, match=r"slice: 5 .* a slice with a foreground point, a roi or a mask on it"
        ):
            parse_deepgrow_2d({**request_, "slice": 5}, GRID, LABELS)

    def test_a_mask_on_another_slice_only(self) -> None:
        with pytest.raises(InputError, match="slice: 5"):
            parse_deepgrow_2d({"slice": 5}, GRID, LABELS, Drawn(mask=mask_at((1, 1, 4))))


def parse_multi(**request: Any) -> dict[str, PromptSet]:
    return parse_deepedit(request, GRID, LABELS)


class TestDeepedit:
    def test_what_is_another_label_is_not_this_one(self) -> None:
        found = parse_multi(
            background=[[9, 9, 9]], spleen=[[4, 5, 6]], liver=[[1, 2, 3]], client_id="x", config=7
        )
        assert list(found.items()) == [
            ("liver", PromptSet(((1, 2, 3),), ((4, 5, 6), (9, 9, 9)), label="liver")),
            ("spleen", PromptSet(((4, 5, 6),), ((1, 2, 3), (9, 9, 9)), label="spleen")),
        ]

    def test_a_label_without_points_is_not_answered(self) -> None:
        assert list(parse_multi(liver=[], spleen=[[1, 1, 1]], label="liver")) == ["spleen"]

    @pytest.mark.parametrize("request_", [{}, {"liver": [], "spleen": None}, {"background": [[1, 1, 1]]}])
    def test_no_point_of_a_label(self, request_: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"at least one point .* liver, spleen"):
            parse_multi(**request_)

    @pytest.mark.parametrize("other", ["spleen", "background"])
    def test_one_voxel_for_two(self, other: str) -> None:
        with pytest.raises(InputError, match=rf"{other}: \[1, 2, 3\] .* not marked as liver too"):
            parse_multi(**{"liver": [[1, 2, 3]], other: [[5, 5, 5], [1.2, 2, 3]]})

    def test_the_same_click_twice_is_one(self) -> None:
        assert len(parse_multi(liver=[[1, 2, 3], [1, 2, 3]])) == 1

    @pytest.mark.parametrize("key", ["kidney", "foreground", "points"])
    def test_points_under_a_name_that_nobody_reads(self, key: str) -> None:
        with pytest.raises(InputError, match=rf"points: '{key}' .* the labels liver, spleen, or background"):
            parse_multi(**{"liver": [[1, 2, 3]], key: [[4, 5, 6]]})

    def test_an_unknown_selected_label(self) -> None:
        assert parse_multi(liver=[[1, 2, 3]], label="background")
        with pytest.raises(InputError, match="label: 'kidney'"):
            parse_multi(liver=[[1, 2, 3]], label="kidney")

    def test_too_many_points_in_all(self) -> None:
        half = MAX_POINTS // 2 + 1
        points = [[n % 20, n % 30, n // 60] for n in range(half)]
        with pytest.raises(InputError, match="1002 points' is not accepted; allowed: at most 1000"):
            parse_multi(liver=points, spleen=points)

    def test_a_point_outside(self) -> None:
        with pytest.raises(InputError, match=r"spleen\[0\]: \[0, 0, 10\]"):
            parse_multi(spleen=[[0, 0, 10]])


class TestSegmentation:
    @pytest.mark.parametrize(
        ("request_", "names"),
        [
            ({}, ["liver", "spleen"]),
            ({"label_prompt": [], "labels": None}, ["liver", "spleen"]),
            ({"label_prompt": [2]}, ["spleen"]),
            ({"labels": ["spleen", "liver", "spleen"]}, ["liver", "spleen"]),
        ],
    )
    def test_the_labels_asked_for(self, request_: dict[str, Any], names: list[str]) -> None:
        assert parse_segmentation(request_, LABELS) == names

    @pytest.mark.parametrize("value", [["kidney"], [3], [0], [True], [1.0], [None], "liver", 1, [["liver"]]])
    def test_an_unknown_label(self, value: Any) -> None:
        with pytest.raises(InputError, match=r"label_prompt: .* allowed: a list of liver, spleen"):
            parse_segmentation({"label_prompt": value}, LABELS)
