"""MONAI Label's trainer `medsa`: runs in a child process, results reach the server through files."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lib.trainers.children import become_child
from lib.training.cases import CaseFile
from lib.training.progress_file import read_progress
from lib.training.record import RunRecord

log = logging.getLogger(__name__)

FINAL = "final"


class MedsaTrainer(TrainTask):
    """Trains the adapter on the datastore's final labels; `run` does it and returns the record of the run."""

    def __init__(self, run: Callable[[list[CaseFile]], RunRecord], state: Path) -> None:
        super().__init__("Trains the adapter on all saved labels and publishes it if it is better")
        self._run, self._state = run, state

    def stats(self) -> dict[str, Any]:
        """The running or last run's progress, as both viewers read it."""
        stats = dict(read_progress(self._state))
        if stats.get("running"):
            # 3D Slicer takes a total time as the sign that training is over.
            del stats["total_time"]
        # It also multiplies what is there, and cannot do that with None.
        return {key: value for key, value in stats.items() if value is not None}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """One run; raises TrainingError when it cannot start."""
        become_child()
        record = self._run(labelled_cases(datastore))
        log.info("training %s: %s", record.decision, "; ".join(record.reasons))
        return {"decision": record.decision, "reasons": list(record.reasons), "version": record.version}


def labelled_cases(datastore: Datastore) -> list[CaseFile]:
    """The images that have a final label, by id."""
    return [
        CaseFile(
            case_id, Path(datastore.get_image_uri(case_id)), Path(datastore.get_label_uri(case_id, FINAL))
        )
        for case_id in sorted(datastore.get_labeled_images())
    ]
