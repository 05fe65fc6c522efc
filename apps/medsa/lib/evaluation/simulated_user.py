"""An annotator who knows the truth: clicks into the object, then on the largest error, again and again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.evaluation.metrics import volume_dice
from lib.prompts.promptset import PromptSet
from lib.prompts.simulate import first_click, next_click

Predict = Callable[[PromptSet], NDArray[Any]]


@dataclass(frozen=True)
class ClickResult:
    """All prompts given so far and the volume Dice of the answer to them."""

    prompts: PromptSet
    dice: float


def annotate(
    predict: Predict,
    truth: NDArray[np.bool_],
    clicks: int,
    axis: int,
    spacing_mm: Sequence[float],
    label: str | None = None,
) -> list[ClickResult]:
    """One result per click, up to `clicks`; fewer when an answer has no error left.

    `predict` answers a mask (i, j, k) of the truth's shape, non-zero inside. Raises InputError for an empty
    truth.
    """
    prompts = PromptSet(positive_ijk=(first_click(truth, axis),), label=label)
    results: list[ClickResult] = []
    for _ in range(clicks):
        mask = np.asarray(predict(prompts)) != 0
        results.append(ClickResult(prompts, volume_dice(mask, truth)))
        correction = next_click(truth, mask, axis, spacing_mm)
        if correction is None:
            break
        prompts = _with_click(prompts, *correction)
    return results


def _with_click(prompts: PromptSet, point_ijk: tuple[int, int, int], positive: bool) -> PromptSet:
    if positive:
        return replace(prompts, positive_ijk=(*prompts.positive_ijk, point_ijk))
    return replace(prompts, negative_ijk=(*prompts.negative_ijk, point_ijk))
