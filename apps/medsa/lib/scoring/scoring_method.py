"""MONAI Label's scoring method `medsa`: scores cases with the version that serves (`sweep.to_score` says which)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.infers.serving import Served
from lib.scoring.scores import ScoreFolder
from lib.scoring.survey import Surveyor
from lib.scoring.sweep import sweep
from lib.trainers.children import become_child, stop_requested
from lib.training.clicks_first import ClicksFirst


@dataclass(frozen=True)
class ScoringTask:
    """What scoring needs: labels, folder, state folder, and the way to the model, which is loaded only when needed."""

    labels: tuple[str, ...]
    scores: ScoreFolder
    state: Path
    served: Callable[[], Served]


class MedsaScoring(ScoringMethod):
    """Scores every case that the published version has not scored yet, the most promising first."""

    def __init__(self, task: ScoringTask) -> None:
        super().__init__("How unsure the model is, of which label, and how unlike other cases an image is")
        self._task = task

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """{"scored": count, "skipped": {case: reason}}."""
        become_child()
        clicks = ClicksFirst.under(self._task.state)
        surveyor = Surveyor(self._task.served(), self._task.labels, lambda: _let_pass(clicks))
        self._task.scores.tidy(lambda: set(datastore.list_images()))
        scored, skipped = 0, {}
        for step in sweep(
            datastore, self._task.scores, surveyor, should_stop=lambda: self._is_over(surveyor)
        ):
            if step.problem is None:
                scored += 1
            else:
                skipped[step.case] = step.problem
        return {"scored": scored, "skipped": skipped}

    def _is_over(self, surveyor: Surveyor) -> bool:
        """Whether it was asked to stop, or another version serves: the server starts another scoring then."""
        return stop_requested() or self._task.served().adapter_version != surveyor.served.adapter_version


def _let_pass(clicks: ClicksFirst) -> None:
    clicks.wait(stop_requested)
