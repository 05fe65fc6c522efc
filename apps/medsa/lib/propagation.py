"""Carrying an object from the slices where it was marked to their neighbours, until it ends, and corrections of that.

Pure: no model, no state. The model comes in as a function that answers several slices at once, because a call
costs far more than one slice in it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# The IoU the model predicts, as a share of what it predicted where the annotator pointed: below this it does
# not believe its mask. A share, because a model may rate itself too high or too low everywhere. On the real
# hippocampus and heart volumes 0.6 to 0.75 do about equally well; less lets the object run on, more cuts it
# short.
MIN_QUALITY = 0.65
# From one slice to the next an outline moves little: less overlap (Dice) than this is another structure, not
# this one.
MIN_OVERLAP = 0.4
# A mask that grows beyond this in one step has leaked into the surroundings.
MAX_GROWTH = 2.0
# Fewer low-resolution pixels than this are no outline any more; the object has ended.
MIN_AREA_PIXELS = 2
# A correction changes what was found before on so many slices to either side, and on none farther away.
REACH = 6
# Where the corrected object overlaps (Dice) what was found before like this, there is nothing to correct any more.
SAME = 0.9
# Where nothing was found before, the object goes on from a new click for so many times the slices that were missing
# between it and the object, and at least for so many slices. Chosen on made volumes (docs/decisions.md).
MISSING_REACH, LEAST_REACH = 2, 3


@dataclass(frozen=True, eq=False)
class PlaneMask:
    """One slice's answer: logits (m, m), rows y and columns x, on the CPU, and the IoU the model predicts.

    `given` (n_u, n_v) bool are the voxels themselves where they came from the annotator and not from the model.
    """

    logits: Tensor
    predicted_iou: float
    given: NDArray[np.bool_] | None = None

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """(m, m) bool."""
        return (self.logits > 0).numpy()

    @cached_property
    def area(self) -> int:
        """In low-resolution pixels."""
        return int(np.count_nonzero(self.inside))

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        return self.logits.nbytes + self.logits.numel() + (0 if self.given is None else self.given.nbytes)


@dataclass(frozen=True)
class CarryLimits:
    """When carrying ends: see the constants of this module."""

    min_quality: float = MIN_QUALITY
    min_overlap: float = MIN_OVERLAP
    max_growth: float = MAX_GROWTH
    min_area_pixels: int = MIN_AREA_PIXELS


@dataclass(frozen=True)
class CarryStep:
    """Asks for slice `index`, given its neighbour's mask `previous` and that of the seed where it all began.

    `direction` is +1 or -1 along the slice axis, `taken` the number of steps since the seed, this one included.
    """

    index: int
    direction: int
    previous: PlaneMask
    seed: PlaneMask
    taken: int = 1

    @property
    def origin(self) -> int:
        """The slice of the seed."""
        return self.index - self.direction * self.taken

    def after(self, answer: PlaneMask) -> "CarryStep":
        """The next step in the same direction."""
        return CarryStep(self.index + self.direction, self.direction, answer, self.seed, self.taken + 1)


# An answer of None: the annotator said that the object is not there, or there is nothing to correct.
DecodeSteps = Callable[[Sequence[CarryStep]], Sequence[PlaneMask | None]]


def carry(
    seeds: Mapping[int, PlaneMask], bounds: range, decode: DecodeSteps, limits: CarryLimits | None = None
) -> dict[int, PlaneMask]:
    """The object on every slice it reaches: the seeds as they are, the rest carried from them in `bounds`.

    Every seed sends one front up and one down; all fronts move one slice at a time, in one call of `decode`.
    Two fronts that run towards each other meet half way; where one of them has lost the object, the other
    goes on alone.
    """
    limits = limits or CarryLimits()
    found = dict(seeds)
    fronts = _fronts(seeds, limits)
    while fronts := [step for step in fronts if step.index in bounds and step.index not in found]:
        now, fronts = _one_per_slice(fronts)
        for step, answer in zip(now, decode(now), strict=True):
            if answer is not None and continues(step, answer, limits):
                found[step.index] = answer
                fronts.append(step.after(answer))
    return found


def revise(
    earlier: Mapping[int, PlaneMask],
    corrected: Mapping[int, PlaneMask],
    fixed: Collection[int],
    bounds: range,
    decode: DecodeSteps,
    limits: CarryLimits | None = None,
) -> dict[int, PlaneMask]:
    """The object found `earlier`, with the `corrected` slices in it and their surroundings brought into line.

    From every corrected slice the correction is carried both ways: over slices where the object was before, as long
    as there is something to correct and at most `REACH` slices far; over others until the object ends, but not far
    beyond the click. `fixed` slices, which the annotator marked, stay as they are. An empty corrected slice is where
    the object ends.
    """
    limits = limits or CarryLimits()
    found = {**earlier, **corrected}
    settled = {*fixed, *corrected}
    fronts = _fronts(corrected, limits)
    while fronts := [step for step in fronts if step.index in bounds and step.index not in settled]:
        now, fronts = _one_per_slice(fronts)
        for step, answer in zip(now, decode(now), strict=True):
            if answer is None or not continues(step, answer, limits):
                continue
            known = earlier.get(step.index)
            if _is_near(step, earlier) and (known is None or overlap(answer, known) < SAME):
                found[step.index] = answer
                settled.add(step.index)
                fronts.append(step.after(answer))
    # What was found before, however small, stays where nobody corrected it.
    ended = {index for index, plane in corrected.items() if plane.area < limits.min_area_pixels}
    return {index: plane for index, plane in found.items() if index not in ended}


def connected(found: Mapping[int, PlaneMask], marked: Collection[int]) -> dict[int, PlaneMask]:
    """`found` without the runs of neighbouring slices that hold no `marked` one: nobody said they are the object."""
    kept: dict[int, PlaneMask] = {}
    for start in marked:
        for direction in (-1, 1):
            index = start
            while index in found:
                kept[index] = found[index]
                index += direction
    return kept


def continues(step: CarryStep, answer: PlaneMask, limits: CarryLimits) -> bool:
    """Whether `answer` can be the object that `step` carries, one slice further."""
    previous = step.previous
    if answer.area < limits.min_area_pixels:
        return False
    if answer.predicted_iou < limits.min_quality * step.seed.predicted_iou:
        return False
    if answer.area > limits.max_growth * previous.area:
        return False
    return overlap(answer, previous) >= limits.min_overlap


def overlap(one: PlaneMask, other: PlaneMask) -> float:
    """Dice of two masks; 0 when both are empty."""
    common = np.count_nonzero(one.inside & other.inside)
    return 2 * common / max(1, one.area + other.area)


def _is_near(step: CarryStep, earlier: Mapping[int, PlaneMask]) -> bool:
    """Whether the step may still be part of what its click meant.

    People click into the middle of an error: beyond the click the object goes on about as far as it was missing
    before it.
    """
    if step.index in earlier:
        return step.taken <= REACH
    gap = min((abs(step.origin - index) for index in earlier), default=None)
    return gap is None or step.taken <= max(LEAST_REACH, MISSING_REACH * gap)


def _fronts(seeds: Mapping[int, PlaneMask], limits: CarryLimits) -> list[CarryStep]:
    """One step up and one down from every seed that shows anything."""
    return [
        CarryStep(index + direction, direction, seeds[index], seeds[index])
        for index in sorted(seeds)
        for direction in (-1, 1)
        if seeds[index].area >= limits.min_area_pixels
    ]


def _one_per_slice(fronts: Sequence[CarryStep]) -> tuple[list[CarryStep], list[CarryStep]]:
    """The fronts to move now, and those that wait for whether another one gets the slice they want."""
    now: dict[int, CarryStep] = {}
    waiting = [step for step in fronts if now.setdefault(step.index, step) is not step]
    return list(now.values()), waiting
