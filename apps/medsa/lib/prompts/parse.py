"""The one place where a viewer's request becomes PromptSets: one function for each type of task.

A viewer's other keys (its whole configuration, `client_id`, ...) are ignored. All functions raise InputError naming
the key, the value and what is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lib.errors import InputError
from lib.prompts.coordinates import Grid, check_number, parse_points, parse_roi, parse_slice
from lib.prompts.promptset import Box, MaskPrompt, PromptSet, Voxel
from lib.transforms.geometry import take_planes

BACKGROUND = "background"


@dataclass(frozen=True)
class Drawn:
    """What a label file says: strokes as points, and a segmentation to refine."""

    positive_ijk: tuple[Voxel, ...] = ()
    negative_ijk: tuple[Voxel, ...] = ()
    mask: MaskPrompt | None = None


def parse_deepgrow(
    request: Mapping[str, Any], grid: Grid, labels: Mapping[str, int], drawn: Drawn | None = None
) -> PromptSet:
    """The prompts for one object: `foreground`, `background`, `roi`, `label`, and what was `drawn`.

    `foreground` and `background` are lists of [i, j, k], rounded to the nearest voxel; `roi` is a box; `slice` names
    the slice of a `roi` of 4 numbers.
    """
    drawn = drawn or Drawn()
    positive, negative = (parse_points(request, key, grid) for key in ("foreground", BACKGROUND))
    check_number("foreground and background", len(positive) + len(negative))
    _refuse_shared_voxels({"foreground": positive, BACKGROUND: negative})
    box = parse_roi(request.get("roi"), grid, parse_slice(request.get("slice"), grid))
    boxes = () if box is None else (box,)
    prompts = PromptSet(
        positive + drawn.positive_ijk,
        negative + drawn.negative_ijk,
        boxes,
        parse_label("label", request.get("label"), labels),
        drawn.mask,
    )
    if not (prompts.positive_ijk or boxes or prompts.mask):
        raise _nothing_marked(request, prompts)
    return prompts


def parse_deepgrow_2d(
    request: Mapping[str, Any], grid: Grid, labels: Mapping[str, int], drawn: Drawn | None = None
) -> tuple[PromptSet, int | None]:
    """The prompts as `parse_deepgrow` has them, and the slice they were cut down to; None where none was named.

    Viewers send the points of the shown slice only, but a box goes through the volume.
    """
    index = parse_slice(request.get("slice"), grid)
    prompts = parse_deepgrow(request, grid, labels, drawn)
    if index is None:
        return prompts, None
    cut = _on_slice(prompts, grid, index)
    if not (cut.positive_ijk or cut.boxes or cut.mask):
        raise InputError("slice", request["slice"], "a slice with a foreground point, a roi or a mask on it")
    return cut, index


def parse_deepedit(request: Mapping[str, Any], grid: Grid, labels: Mapping[str, int]) -> dict[str, PromptSet]:
    """Label -> its prompts, for each label with a point under its own name, in the order of `labels`.

    What is marked as another label, or as `background`, is not this one. `label`, the segment selected in the
    viewer, is checked and means nothing further.
    """
    parse_label("label", request.get("label"), {**labels, BACKGROUND: 0})
    _refuse_unknown_points(request, labels)
    marked = {name: parse_points(request, name, grid) for name in (*labels, BACKGROUND)}
    check_number("all labels together", sum(map(len, marked.values())))
    _refuse_shared_voxels(marked)
    found = {
        name: PromptSet(marked[name], _points_of_others(marked, name), label=name)
        for name in labels
        if marked[name]
    }
    if not found:
        raise InputError("points", None, f"at least one point [i, j, k] under one of {', '.join(labels)}")
    return found


def parse_segmentation(request: Mapping[str, Any], labels: Mapping[str, int]) -> list[str]:
    """The labels wanted, in the order of `labels`: those under `label_prompt` or `labels`, all where none is named.

    3D tools of OHIF name a label by its value.
    """
    for key in ("label_prompt", "labels"):
        value = request.get(key)
        if value is not None and value != []:
            return _label_list(key, value, labels)
    return list(labels)


def parse_label(field: str, value: Any, labels: Mapping[str, int]) -> str | None:
    """The name of one of `labels`; None where there is none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value not in labels:
        raise InputError(field, value, ", ".join(labels))
    return value


def _nothing_marked(request: Mapping[str, Any], prompts: PromptSet) -> InputError:
    if prompts.negative_ijk:
        return InputError(
            BACKGROUND,
            [list(point) for point in prompts.negative_ijk],
            "a foreground point, roi or mask beside them",
        )
    return InputError(
        "foreground",
        request.get("foreground"),
        "at least one point [i, j, k], a roi, or a label file that marks voxels",
    )


def _on_slice(prompts: PromptSet, grid: Grid, index: int) -> PromptSet:
    positive, negative = (
        tuple(point for point in points if point[grid.axis] == index)
        for points in (prompts.positive_ijk, prompts.negative_ijk)
    )
    boxes = tuple(
        _flat(box, grid.axis, index)
        for box in prompts.boxes
        if box.start_ijk[grid.axis] <= index < box.stop_ijk[grid.axis]
    )
    mask = None if prompts.mask is None else _mask_on_slice(prompts.mask, grid.axis, index)
    return replace(prompts, positive_ijk=positive, negative_ijk=negative, boxes=boxes, mask=mask)


def _flat(box: Box, axis: int, index: int) -> Box:
    start, stop = list(box.start_ijk), list(box.stop_ijk)
    start[axis], stop[axis] = index, index + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _mask_on_slice(mask: MaskPrompt, axis: int, index: int) -> MaskPrompt | None:
    if not take_planes(mask.inside, axis, [index]).any():
        return None
    inside = np.zeros_like(mask.inside)
    at: list[Any] = [slice(None)] * 3
    at[axis] = index
    inside[tuple(at)] = mask.inside[tuple(at)]
    return MaskPrompt(inside)


def _points_of_others(marked: Mapping[str, tuple[Voxel, ...]], name: str) -> tuple[Voxel, ...]:
    return tuple(point for other, points in marked.items() if other != name for point in points)


def _refuse_shared_voxels(marked: Mapping[str, tuple[Voxel, ...]]) -> None:
    owner: dict[Voxel, str] = {}
    for name, points in marked.items():
        for point in points:
            first = owner.setdefault(point, name)
            if first != name:
                raise InputError(name, list(point), f"a voxel that is not marked as {first} too")


def _refuse_unknown_points(request: Mapping[str, Any], labels: Mapping[str, int]) -> None:
    """A viewer sends its whole configuration along; but points under a name that nobody reads would be lost."""
    for key, value in request.items():
        if key not in labels and key != BACKGROUND and _looks_like_points(value):
            raise InputError("points", key, f"the labels {', '.join(labels)}, or {BACKGROUND}")


def _looks_like_points(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, list) and len(entry) == 3 for entry in value)


def _label_list(key: str, value: Any, labels: Mapping[str, int]) -> list[str]:
    by_value = {number: name for name, number in labels.items()}
    allowed = f"a list of {', '.join(labels)}"
    if not isinstance(value, list | tuple):
        raise InputError(key, value, allowed)
    wanted = set()
    for entry in value:
        # 1.0 and true would be found under 1.
        name = by_value.get(entry) if type(entry) is int else entry
        if not isinstance(name, str) or name not in labels:
            raise InputError(key, entry, allowed)
        wanted.add(name)
    return [name for name in labels if name in wanted]
