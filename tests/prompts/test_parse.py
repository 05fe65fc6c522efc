"""Requests as OHIF and 3D Slicer send them, and everything that must be refused."""

import math
from typing import Any

import pytest

from lib.errors import InputError
from lib.prompts.parse import MAX_POINTS, parse_request
from lib.prompts.promptset import Box, PromptSet

SHAPE = (20, 30, 10)
LABELS = {"liver": 1, "spleen": 2}


def parse(**request: Any) -> PromptSet:
    return parse_request(request, SHAPE, LABELS)


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
