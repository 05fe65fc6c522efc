"""Carrying an object from the slices where it was marked to their neighbours, until it ends.

Pure: no model, no state. The model comes in as a function that answers several slices at once, because a call
costs far more than one slice in it.
"""

from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class PlaneMask:
    """One slice's answer: logits (m, m), rows y and columns x, on the CPU, and the IoU the model predicts."""

    logits: Tensor
    predicted_iou: float

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """(m, m) bool."""
        return (self.logits > 0).numpy()

    @cached_property
    def area(self) -> int:
        """In low-resolution pixels."""
        return int(np.count_nonzero(self.inside))


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

    `direction` is +1 or -1 along the slice axis.
    """

    index: int
    direction: int
    previous: PlaneMask
    seed: PlaneMask

    def after(self, answer: PlaneMask) -> "CarryStep":
        """The next step in the same direction."""
        return CarryStep(self.index + self.direction, self.direction, answer, self.seed)


DecodeSteps = Callable[[Sequence[CarryStep]], Sequence[PlaneMask]]


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
    fronts = [
        CarryStep(index + direction, direction, seeds[index], seeds[index])
        for index in sorted(seeds)
        for direction in (-1, 1)
        if seeds[index].area >= limits.min_area_pixels
    ]
    while fronts := [step for step in fronts if step.index in bounds and step.index not in found]:
        now, waiting = _one_per_slice(fronts)
        fronts = waiting
        for step, answer in zip(now, decode(now), strict=True):
            if continues(step, answer, limits):
                found[step.index] = answer
                fronts.append(step.after(answer))
    return found


def continues(step: CarryStep, answer: PlaneMask, limits: CarryLimits) -> bool:
    """Whether `answer` can be the object that `step` carries, one slice further."""
    previous = step.previous
    if answer.area < limits.min_area_pixels:
        return False
    if answer.predicted_iou < limits.min_quality * step.seed.predicted_iou:
        return False
    if answer.area > limits.max_growth * previous.area:
        return False
    common = np.count_nonzero(answer.inside & previous.inside)
    return bool(2 * common >= limits.min_overlap * (answer.area + previous.area))


def _one_per_slice(fronts: Sequence[CarryStep]) -> tuple[list[CarryStep], list[CarryStep]]:
    """The fronts to move now, and those that wait for whether another one gets the slice they want."""
    now: dict[int, CarryStep] = {}
    waiting = [step for step in fronts if now.setdefault(step.index, step) is not step]
    return list(now.values()), waiting
