"""Cases cut into slices for training, and the runs of neighbouring slices that a step sees.

A slab is a run of consecutive slices of one case, which the encoder's depth branch sees together; without that
branch it is one slice. Slices are (n_u, n_v) in voxels, as `lib.transforms.geometry` cuts them. Randomness comes
from the `numpy.random.Generator` handed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lib.prompts.promptset import PromptSet
from lib.prompts.slice_plan import SlicePrompt, plan_slices
from lib.training.cases import Case
from lib.training.viewpoint import Viewpoint
from lib.transforms.geometry import PlaneGeometry, in_plane_axes, plane_geometry, slice_axis, take_planes
from lib.transforms.intensity import to_model_range

FILLED_SHARE = 0.8  # of the slices of a step; the rest hold no voxel of their label
BEYOND_SHARE = 0.6  # of the empty slices; these touch the object's end, where carrying must stop

# Tokens along a side of the smallest embedding that is trained on: below it an object is no more than a few of them.
SMALLEST_GRID = 16

PlaneAxis = Literal["u", "v"]
PLANE_AXES: tuple[PlaneAxis, ...] = ("u", "v")
Slices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """One case ready to be cut: planes float16 (n, n_u, n_v) in 0..255, labels uint8 of the same shape.

    The planes of a colour image are (n, n_u, n_v, 3).
    `filled` and `beyond` map a label's index to the slices that hold it, and to the empty ones beside those;
    `recorded` maps it to what the annotator marked, by slice. `flips` are the axes of a slice that may be mirrored.
    """

    case_id: str
    geometry: PlaneGeometry
    planes: NDArray[np.float16]
    labels: NDArray[np.uint8]
    values: tuple[int, ...]
    filled: Mapping[int, Slices]
    beyond: Mapping[int, Slices]
    recorded: Mapping[int, Mapping[int, SlicePrompt]] = field(default_factory=dict)
    flips: tuple[PlaneAxis, ...] = ()

    def at_size(self, image_size: int, mask_size: int) -> "TrainingCase":
        """The same case for a network with another image size; the planes are shared."""
        return replace(self, geometry=replace(self.geometry, image_size=image_size, mask_size=mask_size))


@dataclass(frozen=True, eq=False)
class Sample:
    """One slice and what is asked for: `target` the label there, `neighbour` that on a slice beside it.

    plane float32 (n_u, n_v), in colour (n_u, n_v, 3), in 0..255, target and neighbour bool (n_u, n_v). `neighbour`
    is empty where neither slice beside it holds the label. `recorded` is what the annotator marked here for that label,
    None where that is not to be asked again.
    """

    plane: NDArray[np.float32]
    target: NDArray[np.bool_]
    neighbour: NDArray[np.bool_]
    label_id: int
    geometry: PlaneGeometry
    recorded: SlicePrompt | None = None
    flips: tuple[PlaneAxis, ...] = ()


# Consecutive slices of one case, in order, with one label.
Slab = tuple[Sample, ...]


def prepare_case(case: Case, view: Viewpoint, image_size: int, mask_size: int) -> TrainingCase:
    """Cuts a case into normalised planes, once for a whole run."""
    axis = slice_axis(case.volume.spacing_mm, view.slice_axis, case.volume.shape_ijk)
    shape = case.volume.shape_ijk
    everything = range(shape[axis])
    values = tuple(view.labels.values())
    cut = np.ascontiguousarray(take_planes(case.label, axis, everything))
    filled = {
        index: np.flatnonzero((cut == value).any(axis=(1, 2)))
        for index, value in enumerate(values)
        if (cut == value).any()
    }
    plane_axes = zip(PLANE_AXES, in_plane_axes(axis), strict=True)
    return TrainingCase(
        case_id=case.case_id,
        geometry=plane_geometry(shape, case.volume.spacing_mm, axis, image_size, mask_size),
        planes=take_planes(to_model_range(case.volume.array, view.intensity), axis, everything).astype(
            np.float16
        ),
        labels=cut,
        values=values,
        filled=filled,
        beyond={index: _beyond(slices, shape[axis]) for index, slices in filled.items()},
        recorded=_recorded(case, view, axis, filled),
        flips=tuple(name for name, of in plane_axes if "ijk"[of] in view.flips),
    )


def draw_slab(
    cases: Sequence[TrainingCase],
    length: int,
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
    recorded_share: float = 0.0,
) -> Slab:
    """`length` consecutive slices of a case for one of its labels, not yet augmented.

    All of the case where it has fewer. They are placed around a slice that is drawn to hold the label or not, or, in
    `recorded_share` of the cases that have any, around one with marks of the annotator; it may be any of them.
    `weights` say how often each case is drawn, None: all alike.
    """
    case = cases[int(rng.choice(len(cases), p=weights))]
    label_id = int(rng.choice(sorted(case.filled)))
    marked = case.recorded.get(label_id, {})
    asked_again = bool(marked) and rng.random() < recorded_share
    anchor = int(rng.choice(sorted(marked))) if asked_again else _draw_slice(case, label_id, rng)
    count = len(case.planes)
    length = min(length, count)
    first = int(rng.integers(max(0, anchor - length + 1), min(anchor, count - length) + 1))
    planes = case.planes[first : first + length].astype(np.float32)
    targets = case.labels[first : first + length] == case.values[label_id]
    return tuple(
        Sample(
            plane,
            target,
            _neighbour(case, label_id, first + place, rng),
            label_id,
            case.geometry,
            marked.get(first + place) if asked_again else None,
            case.flips,
        )
        for place, (plane, target) in enumerate(zip(planes, targets, strict=True))
    )


def _recorded(
    case: Case, view: Viewpoint, axis: int, filled: Mapping[int, Slices]
) -> dict[int, dict[int, SlicePrompt]]:
    """What was marked, by label and slice; a prompt without a label's name is for the only label there is."""
    found: dict[int, dict[int, SlicePrompt]] = {}
    for index, name in enumerate(view.labels):
        prompts = case.recorded.get(name) or (case.recorded.get("") if len(view.labels) == 1 else None)
        if prompts is not None and index in filled and _fits(prompts, case.volume.shape_ijk):
            found[index] = plan_slices(prompts, axis, case.volume.shape_ijk).prompts
    return {index: marks for index, marks in found.items() if marks}


def _fits(prompts: PromptSet, shape_ijk: tuple[int, int, int]) -> bool:
    """Whether all that was marked lies in the image: else it was another image of that name."""
    points = [*prompts.positive_ijk, *prompts.negative_ijk, *(box.start_ijk for box in prompts.boxes)]
    within = all(
        0 <= place < count for point in points for place, count in zip(point, shape_ijk, strict=True)
    )
    stops = (box.stop_ijk for box in prompts.boxes)
    return within and all(
        0 < stop <= count for edge in stops for stop, count in zip(edge, shape_ijk, strict=True)
    )


def _beyond(filled: Slices, count: int) -> Slices:
    beside = np.union1d(filled - 1, filled + 1)
    return np.setdiff1d(beside[(beside >= 0) & (beside < count)], filled)


def _draw_slice(case: TrainingCase, label_id: int, rng: np.random.Generator) -> int:
    filled, beyond = case.filled[label_id], case.beyond[label_id]
    empty = np.setdiff1d(np.arange(len(case.planes)), filled)
    if len(empty) == 0 or rng.random() < FILLED_SHARE:
        return int(rng.choice(filled))
    if len(beyond) and rng.random() < BEYOND_SHARE:
        return int(rng.choice(beyond))
    return int(rng.choice(empty))


def _neighbour(case: TrainingCase, label_id: int, index: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The label on one of the two slices beside `index`, preferably one that has it."""
    beside = [other for other in (index - 1, index + 1) if other in case.filled[label_id]]
    if not beside:
        return np.zeros(case.labels.shape[1:], dtype=bool)
    return case.labels[int(rng.choice(beside))] == case.values[label_id]
