"""How good a model is on the validation cases: the same simulated annotator for every model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.embeddings import EmbeddingCache
from lib.evaluation.metrics import volume_dice
from lib.evaluation.simulated_user import annotate
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.prompts.promptset import PromptSet
from lib.training.cases import Case
from lib.training.gate import Scores
from lib.training.viewpoint import Viewpoint
from lib.transforms.geometry import slice_axis

CLICKS = 2  # the first click, and one on the largest error
CACHE_BYTES = 1 << 30  # one volume at a time; what does not fit is encoded again


@dataclass(frozen=True)
class ObjectScore:
    """Dice of one label of one case: after each click, and of the prediction without any."""

    case_id: str
    label: str
    clicks: tuple[float, ...]
    automatic: float


def validate(model: MedSA, cases: Sequence[Case], view: Viewpoint) -> list[ObjectScore]:
    """Annotates every label of every case with `CLICKS` simulated clicks, as the server would answer them."""
    found: list[ObjectScore] = []
    for case in cases:
        # Its own cache a case: the key tells no training states apart, and a case is never looked at twice.
        predictor = Predictor(
            model, "validation", view.intensity, view.slice_axis, EmbeddingCache(CACHE_BYTES), view.device
        )
        for name, value in view.labels.items():
            truth = case.label == value
            if truth.any():
                found.append(_score(predictor, case, name, truth, view))
    return found


def as_scores(
    objects: Sequence[ObjectScore], cases: Sequence[Case], expected: Sequence[str], labels: Mapping[str, int]
) -> Scores:
    """What the gate compares: for each `expected` label the mean Dice over the clicks, one a case."""
    dice = {
        label: tuple(sum(found.clicks) / len(found.clicks) for found in objects if found.label == label)
        for label in expected
    }
    return Scores(dict(labels), tuple(case.case_id for case in cases), dice)


def _score(
    predictor: Predictor, case: Case, name: str, truth: NDArray[np.bool_], view: Viewpoint
) -> ObjectScore:
    axis = slice_axis(case.volume.spacing_mm, view.slice_axis, case.volume.shape_ijk)
    results = annotate(_answer(predictor, case), truth, CLICKS, axis, case.volume.spacing_mm, name)
    automatic = predictor.automatic_mask(case.volume, name) > 0
    # Without an error left there is no further click; the answer stays what it was.
    dice = [result.dice for result in results]
    clicks = tuple(dice + dice[-1:] * (CLICKS - len(dice)))
    return ObjectScore(case.case_id, name, clicks, volume_dice(automatic, truth))


def _answer(predictor: Predictor, case: Case) -> Callable[[PromptSet], NDArray[np.bool_]]:
    return lambda prompts: predictor.predict(case.volume, prompts).mask > 0
