"""MONAI Label's scoring method `medsa`: how uncertain the serving model is about each unlabelled case."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.errors import MedsaError, PacsError
from lib.infers.serving import Served
from lib.predictor import Predictor
from lib.scoring.entropy import mean_entropy
from lib.scoring.scores import CaseScore, ScoreTable, read_scores, write_scores
from lib.trainers.children import become_child
from lib.transforms.geometry import slice_axis
from lib.volume import load_volume

log = logging.getLogger(__name__)

# Uncertainty changes little from slice to slice; encoding does most of the work.
MAX_SLICES = 16


@dataclass(frozen=True)
class ScoringTask:
    """What scoring needs: labels, score file and the way to the model, loaded only when needed."""

    labels: tuple[str, ...]
    scores_file: Path
    served: Callable[[], Served]


class UncertaintyScoring(ScoringMethod):
    """Scores every unlabelled case that the published version has not scored yet."""

    def __init__(self, task: ScoringTask) -> None:
        super().__init__("Mean entropy of the automatic prediction over the predicted object")
        self._task = task

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """{"scored": count, "skipped": {case: reason}}; each score is on record as soon as it is known."""
        become_child()
        served = self._task.served()
        path = self._task.scores_file
        known = set(datastore.list_images())
        table = ScoreTable({case: entry for case, entry in read_scores(path).cases.items() if case in known})
        missing = table.missing(datastore.get_unlabeled_images(), served.base, served.adapter_version)
        skipped: dict[str, str] = {}
        for case in missing:
            try:
                entry = self._score(served, case, datastore)
            except PacsError as error:
                skipped[case] = str(error)  # another time it may be fetched
                continue
            table.cases[case] = entry
            write_scores(path, table)
            if entry.error is not None:
                skipped[case] = entry.error
        return {"scored": len(missing) - len(skipped), "skipped": skipped}

    def _score(self, served: Served, case: str, datastore: Any) -> CaseScore:
        try:
            score = score_image(served.predictor, datastore.image_path(case), self._task.labels)
        except PacsError:
            raise
        except (MedsaError, OSError) as error:
            log.warning("case %s is not scored: %s", case, error)
            return CaseScore(None, served.base, served.adapter_version, str(error))
        return CaseScore(score, served.base, served.adapter_version)


def score_image(predictor: Predictor, image: Path, labels: Iterable[str]) -> float:
    """The mean over `labels` of the automatic prediction's entropy; raises VolumeError for a bad image."""
    volume = load_volume(image)
    axis = slice_axis(volume.spacing_mm, predictor.slice_axis, volume.shape_ijk)
    stride = max(1, volume.shape_ijk[axis] // MAX_SLICES)
    entropies = [mean_entropy(predictor.automatic(volume, label, stride).probability) for label in labels]
    return sum(entropies) / len(entropies)
