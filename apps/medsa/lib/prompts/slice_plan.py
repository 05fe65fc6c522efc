"""Prompts of a volume sorted by slice: what is marked where, how far the object may reach."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lib.prompts.promptset import Box, PromptSet
from lib.transforms.geometry import in_plane_axes, split_point

EdgesUV = tuple[int, int, int, int]  # u0, v0, u1, v1 in voxels of a slice, half-open
# A box is drawn by hand: the object may reach over its edge by this part of the box's side, and at least one
# voxel.
BOX_MARGIN = 0.1


@dataclass(frozen=True)
class SlicePrompt:
    """What was marked on one slice: `points` are (u, v, 1 for positive or 0 for negative)."""

    points: tuple[tuple[int, int, int], ...] = ()
    box: EdgesUV | None = None

    @property
    def is_seed(self) -> bool:
        """Whether it says where the object is, not only where it is not."""
        return self.box is not None or any(label == 1 for *_, label in self.points)


@dataclass(frozen=True)
class SlicePlan:
    """A PromptSet seen slice by slice.

    `prompts` by slice; `bounds`, the slices that may be reached; `windows`, where the object may lie in the
    slices that a box covers, margin included, and up to any positive click outside it.
    """

    prompts: dict[int, SlicePrompt]
    bounds: range
    windows: dict[int, EdgesUV]

    def only(self, index: int) -> "SlicePlan":
        """The same for one slice alone."""
        kept = {index: self.prompts[index]} if index in self.prompts else {}
        return SlicePlan(kept, range(index, index + 1), self.windows)

    def changed_since(self, earlier: PromptSet, axis: int) -> list[int]:
        """The slices whose clicks are not those of `earlier`, and those of boxes if it had none, in order."""
        before = _points_by_slice(earlier, axis)
        return [
            index
            for index, prompt in sorted(self.prompts.items())
            if set(prompt.points) != set(before.get(index, ()))
            or (prompt.box is not None and not earlier.boxes)
        ]


def plan_slices(prompts: PromptSet, axis: int, shape_ijk: Sequence[int]) -> SlicePlan:
    """Sorts prompts by slice along `axis`.

    A box marks the object on its middle slice. One that is deeper than a slice also bounds the object along
    the axis; several boxes on one slice count as the box around them all.
    """
    points = _points_by_slice(prompts, axis)
    boxes: dict[int, EdgesUV] = {}
    windows: dict[int, EdgesUV] = {}
    u_axis, v_axis = in_plane_axes(axis)
    for box in prompts.boxes:
        first, start_uv = split_point(box.start_ijk, axis)
        after, stop_uv = split_point(box.stop_ijk, axis)
        edges = (*start_uv, *stop_uv)
        _include(boxes, (first + after - 1) // 2, edges)
        for index in range(first, after):
            _include(windows, index, _widen(edges, (shape_ijk[u_axis], shape_ijk[v_axis])))
    for index in points.keys() & windows.keys():
        for u, v, label in points[index]:
            if label == 1:
                _include(windows, index, (u, v, u + 1, v + 1))
    marks = {
        index: SlicePrompt(tuple(points.get(index, ())), boxes.get(index)) for index in {*points, *boxes}
    }
    return SlicePlan(marks, _bounds(prompts.boxes, axis, shape_ijk[axis]), windows)


def _points_by_slice(prompts: PromptSet, axis: int) -> dict[int, list[tuple[int, int, int]]]:
    points: dict[int, list[tuple[int, int, int]]] = {}
    for label, marked in ((1, prompts.positive_ijk), (0, prompts.negative_ijk)):
        for point in marked:
            index, (u, v) = split_point(point, axis)
            points.setdefault(index, []).append((u, v, label))
    return points


def _bounds(boxes: Iterable[Box], axis: int, slice_count: int) -> range:
    deep = [
        (box.start_ijk[axis], box.stop_ijk[axis])
        for box in boxes
        if box.stop_ijk[axis] - box.start_ijk[axis] > 1
    ]
    if not deep:
        return range(slice_count)
    return range(min(start for start, _ in deep), max(stop for _, stop in deep))


def _include(edges_by_slice: dict[int, EdgesUV], index: int, edges: EdgesUV) -> None:
    """Widens what slice `index` has to what encloses it and `edges`."""
    u0, v0, u1, v1 = edges_by_slice.get(index, edges)
    edges_by_slice[index] = (min(u0, edges[0]), min(v0, edges[1]), max(u1, edges[2]), max(v1, edges[3]))


def _widen(edges: EdgesUV, size_uv: tuple[int, int]) -> EdgesUV:
    u0, v0, u1, v1 = edges
    margin_u, margin_v = (max(1, round(BOX_MARGIN * side)) for side in (u1 - u0, v1 - v0))
    return (
        max(0, u0 - margin_u),
        max(0, v0 - margin_v),
        min(size_uv[0], u1 + margin_u),
        min(size_uv[1], v1 + margin_v),
    )
