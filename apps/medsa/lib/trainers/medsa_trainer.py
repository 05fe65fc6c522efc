"""MONAI Label's trainer `medsa`: runs in a child process, results reach the server through files."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lib.errors import PacsError, PacsUnreachableError, VolumeError
from lib.trainers.children import become_child, stop_requested
from lib.training.cases import CaseFile
from lib.training.progress_file import read_progress
from lib.training.record import RunRecord
from lib.training.request import RunRequest
from lib.training.run import is_under_way

log = logging.getLogger(__name__)

FINAL = "final"
MOST_UNREACHABLE = 3
# Trains on cases as asked, until the last argument says that it is to stop.
Run = Callable[[list[CaseFile], RunRequest, Callable[[], bool]], RunRecord]


class MedsaTrainer(TrainTask):
    """Trains the adapter on the datastore's final labels; `run` does it and returns the record of the run."""

    def __init__(self, run: Run, state: Path) -> None:
        super().__init__("Trains the adapter on all saved labels and publishes it if it is better")
        self._run, self._state = run, state

    def stats(self) -> dict[str, Any]:
        """The running or last run's progress, as both viewers read it."""
        stats = dict(read_progress(self._state))
        if stats.get("running"):
            # A run that was killed could not write that it ended.
            stats["running"] = is_under_way(self._state)
        if stats.get("running"):
            # 3D Slicer takes a total time as the sign that training is over.
            stats.pop("total_time", None)
        # It also multiplies what is there, and cannot do that with None.
        return {key: value for key, value in stats.items() if value is not None}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """One run; raises TrainingError when it cannot start, InputError for a request
        that is not one."""
        become_child()
        record = self._run(training_cases(datastore), RunRequest.parse(request), stop_requested)
        log.info("training %s: %s", record.decision, "; ".join(record.reasons))
        return {"decision": record.decision, "reasons": list(record.reasons), "version": record.version}


def labelled_cases(datastore: Any) -> list[CaseFile]:
    """The images that have a final label, by id. One that cannot be had now costs that case alone.

    A PACS that is away is asked for a few images and not for all of them: each time takes seconds.
    """
    found, unreachable, patients = [], 0, datastore.patients()
    for case_id in sorted(datastore.get_labeled_images()):
        label, patient = Path(datastore.get_label_uri(case_id, FINAL)), patients.get(case_id)
        try:
            if unreachable >= MOST_UNREACHABLE and not datastore.is_fetched(case_id):
                raise PacsUnreachableError("the PACS cannot be reached")
            image = Path(datastore.get_image_uri(case_id))
            found.append(CaseFile(case_id, image, label, patient=patient))
        except (PacsError, VolumeError) as error:
            unreachable += isinstance(error, PacsUnreachableError)
            away = isinstance(error, PacsError)
            found.append(CaseFile(case_id, Path(), label, problem=str(error), away=away, patient=patient))
    return found


def training_cases(datastore: Any) -> list[CaseFile]:
    """The same with the prompts that were kept with each label. It reads a record a case: not for every second."""
    return [
        case if case.problem else replace(case, recorded=datastore.recorded_prompts(case.case_id))
        for case in labelled_cases(datastore)
    ]
