"""The app as MONAI Label finds it: wiring only."""

import logging
import time
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp

from lib.activelearning.strategies import strategies
from lib.datastore.local import MedsaDatastore
from lib.errors import NotFoundError, PacsError, VolumeError
from lib.infers.answer import answer
from lib.infers.deepedit import MedsaDeepedit
from lib.infers.deepgrow import MedsaDeepgrow, MedsaDeepgrow2d, MedsaScribbles
from lib.infers.segmentation import MedsaSegmentation
from lib.infers.task import MedsaTask
from lib.scoring.scoring_method import MedsaScoring, ScoringTask
from lib.server.parts import build_parts
from lib.server.serve import begin_serving
from lib.server.startup import or_exit
from lib.server.store import open_store
from lib.trainers.medsa_trainer import MedsaTrainer
from lib.training.ancestry import trained_labels
from lib.version import VERSION

log = logging.getLogger(__name__)


class MedsaApp(MONAILabelApp):
    """Medical SAM Adapter: clicks and boxes in, masks out; learns from every label that is saved."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        with or_exit():
            self._parts = build_parts(Path(app_dir), conf)
        task = self._parts.settings.task
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"medsa - {task.name}",
            description=task.description,
            version=VERSION,
            # A list: OHIF's panel appends to it, and ends with an error where it is a table of names and values.
            labels=sorted(task.labels, key=lambda name: task.labels[name]),
        )
        self._auto_update_scoring = False  # the housekeeping decides when to score

    def init_datastore(self) -> MedsaDatastore:
        with or_exit():
            return open_store(self.studies, self._parts)

    def init_infers(self) -> dict[str, MedsaTask]:
        serving, volumes, labels = self._parts.serving, self._parts.volumes, self._parts.settings.task.labels
        return {
            "medsa": MedsaDeepgrow(serving, volumes, labels),
            "medsa_2d": MedsaDeepgrow2d(serving, volumes, labels),
            "medsa_multi": MedsaDeepedit(serving, volumes, labels),
            "medsa_auto": MedsaSegmentation(serving, volumes, labels, self._trained_labels),
            "medsa_scribbles": MedsaScribbles(serving, volumes, labels),
        }

    def _trained_labels(self, version: int) -> tuple[str, ...]:
        return trained_labels(self._parts.releases.records(), version, self._parts.settings.task.labels)

    def init_trainers(self) -> dict[str, MedsaTrainer]:
        return {"medsa": MedsaTrainer(self._parts.train, self._parts.state)}

    def init_scoring_methods(self) -> dict[str, MedsaScoring]:
        parts = self._parts
        labels = tuple(parts.settings.task.labels)
        return {"medsa": MedsaScoring(ScoringTask(labels, parts.scores, parts.state, parts.serving.current))}

    def init_strategies(self) -> dict[str, Any]:
        return strategies(self._parts.chooser, self._parts.leases)

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        store, image = datastore or self.datastore(), request.get("image")
        result = answer(self._infers, store, request, self._parts.warmer.clicked)
        if isinstance(image, str):
            self._parts.leases.extend(image, time.time())
        return result

    def opened(self, image: Path) -> None:
        """A viewer has opened `image`: it is encoded before the first click."""
        self._parts.warmer.opened(image)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        strategy = self._strategies.get(request["strategy"])
        if strategy is None:
            raise NotFoundError("strategy", request["strategy"], ", ".join(self._strategies))
        store = self.datastore()
        while found := strategy(request, store):
            try:
                path = store.image_path(found["id"])
            except (VolumeError, PacsError, NotFoundError) as error:
                if isinstance(error, NotFoundError):
                    store.refresh()  # its file went, and nobody told
                if found["id"] in store.list_images():
                    raise
                continue  # it turned out to be no volume, or cannot be had now, and is not offered again
            self.opened(path)
            return {**found, "path": str(path)}
        return {}

    def on_save_label(self, image_id: str, label_id: str) -> None:
        log.info("label saved: %s", image_id)
        self._parts.leases.release(image_id)

    def cleanup_sessions(self) -> None:
        """MONAI Label's, which a half-written session folder makes fail: and with it all that is scheduled."""
        try:
            super().cleanup_sessions()
        except Exception:
            log.exception("sessions could not be cleaned up; it is tried again")

    def on_init_complete(self) -> None:
        super().on_init_complete()
        with or_exit():
            begin_serving(self, self._parts)
