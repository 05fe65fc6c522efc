"""How good a model is on the validation cases: the same simulated annotator for every model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from lib.device_memory import once_more
from lib.embeddings import EmbeddingCache
from lib.evaluation.metrics import volume_dice
from lib.evaluation.simulated_user import annotate
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.prompts.promptset import PromptSet
from lib.training.cases import Case
from lib.training.gate import MEASURES, Scores
from lib.training.suspicion import CLICKS as LOOKED_AT_CLICKS
from lib.training.suspicion import Agreement
from lib.training.viewpoint import Viewpoint
from lib.transforms.geometry import slice_axis
from lib.turns import DeviceTurns

CLICKS_OF = {"1 click": 1, "3 clicks": 3, "5 clicks": 5}
NO_CLICKS = "no clicks"
CLICKS = max(CLICKS_OF.values())
CACHE_BYTES = 1 << 30  # one volume at a time; what does not fit is encoded again


@dataclass(frozen=True)
class ObjectScore:
    """Dice of one label of one case: after each click, and of the prediction without any."""

    case_id: str
    label: str
    clicks: tuple[float, ...]
    automatic: float

    @property
    def agreement(self) -> Agreement:
        """What of it tells whether the label is right."""
        return Agreement(self.case_id, self.label, self.automatic, self.clicks[LOOKED_AT_CLICKS - 1])


def validate(
    model: MedSA, cases: Iterable[Case], view: Viewpoint, between: Callable[[], None] = lambda: None
) -> list[ObjectScore]:
    """Annotates every label of every case with `CLICKS` simulated clicks, as the server would answer them.

    `between` is called before every case and between the parts of one, and may raise to end it.
    """
    device = torch.device(view.device)
    return [
        once_more(partial(_score, *found, view), device) for found in _objects(model, cases, view, between)
    ]


def as_scores(objects: Sequence[ObjectScore], expected: Sequence[str], labels: Mapping[str, int]) -> Scores:
    """What the gate compares: for each `expected` label the Dice of every measure, by case."""
    dice = {
        label: {
            measure: {found.case_id: _measured(found, measure) for found in objects if found.label == label}
            for measure in MEASURES
        }
        for label in expected
    }
    return Scores(dict(labels), dice)


def _measured(found: ObjectScore, measure: str) -> float:
    return found.automatic if measure == NO_CLICKS else found.clicks[CLICKS_OF[measure] - 1]


def _score(
    predictor: Predictor, case: Case, name: str, truth: NDArray[np.bool_], view: Viewpoint
) -> ObjectScore:
    clicks = _clicked(predictor, case, name, truth, view, CLICKS)
    return ObjectScore(case.case_id, name, clicks, _automatic(predictor, case, name, truth))


def _agreement(
    predictor: Predictor, case: Case, name: str, truth: NDArray[np.bool_], view: Viewpoint
) -> Agreement:
    automatic = _automatic(predictor, case, name, truth)
    clicks = _clicked(predictor, case, name, truth, view, LOOKED_AT_CLICKS)
    return Agreement(case.case_id, name, automatic, clicks[-1])


def _automatic(predictor: Predictor, case: Case, name: str, truth: NDArray[np.bool_]) -> float:
    return volume_dice(predictor.automatic_mask(case.volume, name) > 0, truth)


def _clicked(
    predictor: Predictor, case: Case, name: str, truth: NDArray[np.bool_], view: Viewpoint, count: int
) -> tuple[float, ...]:
    axis = slice_axis(case.volume.spacing_mm, view.slice_axis, case.volume.shape_ijk)
    results = annotate(_answer(predictor, case), truth, count, axis, case.volume.spacing_mm, name)
    # Without an error left there is no further click; the answer stays what it was.
    dice = [result.dice for result in results]
    return tuple(dice + dice[-1:] * (count - len(dice)))


def _answer(predictor: Predictor, case: Case) -> Callable[[PromptSet], NDArray[np.bool_]]:
    return lambda prompts: predictor.predict(case.volume, prompts).mask > 0


def agreements(
    model: MedSA,
    cases: Iterable[Case],
    view: Viewpoint,
    between: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
) -> list[Agreement]:
    """How far what the model finds agrees with every label of every case, until it is `enough`."""
    found, device = [], torch.device(view.device)
    for objects in _objects(model, cases, view, between):
        if enough():
            break
        found.append(once_more(partial(_agreement, *objects, view), device))
    return found


def _objects(
    model: MedSA, cases: Iterable[Case], view: Viewpoint, between: Callable[[], None]
) -> Iterator[tuple[Predictor, Case, str, NDArray[np.bool_]]]:
    """Every label that occurs in every case, with its mask (i, j, k) and who is to answer."""
    for case in cases:
        between()
        predictor = _predictor(model, view, between)
        for name, value in view.labels.items():
            truth = case.label == value
            if truth.any():
                yield predictor, case, name, truth


def _predictor(model: MedSA, view: Viewpoint, between: Callable[[], None]) -> Predictor:
    # Its own cache a case: the key tells no training states apart, and a case is never looked at twice.
    cache = EmbeddingCache(CACHE_BYTES)
    # Large volumes take minutes: `between` is called before every chunk of slices that is encoded.
    turns = DeviceTurns(on_click=between)
    return Predictor(model, "validation", view.intensity, view.slice_axis, cache, view.device, turns)
