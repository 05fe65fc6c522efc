"""The training part of a run: from which network it starts, with what, and how a fold is trained beside it."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from lib.model.adapter_io import AdapterConfig, adapted
from lib.model.medsa import MedSA
from lib.training.cases import Case
from lib.training.checkpoint import FOLDER, CheckpointFile
from lib.training.circumstances import Circumstances
from lib.training.image_size import fitting_size
from lib.training.judging import Weights
from lib.training.loop import Progress, TrainOptions, TrainResult, train
from lib.training.nightly import TRAINING_SHARE
from lib.training.releases import Release
from lib.training.shelf import Room
from lib.training.slabs import TrainingCase, prepare_case
from lib.training.world import ALONE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """Trains on top of `champion` (None: the base serves), or from the base where that is asked for.

    `new` are the cases that are drawn more often; `on_progress` is told about once a second. `share` is the part of
    the time that is for training on all cases; folds have the rest, or as much again where it is all.
    """

    here: Circumstances
    champion: Release | None
    new: frozenset[str]
    on_progress: Callable[[Progress], None]
    share: float = 1.0

    @property
    def starts_fresh(self) -> bool:
        """Whether the serving version is not what training starts from."""
        return self.here.request.start == "base"

    def served(self, base: MedSA, base_sha256: str) -> MedSA:
        """The network as it serves, which `base` is without a release.

        Raises AdapterError for an adapter that misfits.
        """
        base.to(self.here.view.device)
        if self.champion is None:
            return base
        served = adapted(self.champion.folder, base, base_sha256, self.here.view.labels)
        if served.dims != base.dims and not self.starts_fresh:
            log.warning("training goes on with the serving adapter's %s, not with %s", served.dims, base.dims)
        return served

    def prepared(
        self, start: MedSA, training: Iterable[Case], image_size: int | None = None
    ) -> tuple[MedSA, list[TrainingCase]]:
        """The network to train from `start`, and its cases, at `image_size`.

        None: one that was trained goes on at its image size; a fresh one takes that which fits the slices.
        """
        spec = start.spec
        room = Room.beside(self.here.state)
        cases = []
        for case in training:
            if self.here.world.leads:  # the others are in step with it, and never wait by themselves
                self.here.between_cases()
            cases.append(room.keep(prepare_case(case, self.here.view, spec.image_size, spec.mask_size)))
        size = self._size(start, cases) if image_size is None else image_size
        if size == spec.image_size:
            return start, cases
        log.info("training on images of %d pixels, not %d: no slice has more voxels", size, spec.image_size)
        model = start.at_size(size)
        return model, [case.at_size(size, model.spec.mask_size) for case in cases]

    def checkpoint(self, model: MedSA, base_sha256: str, lessons: str) -> CheckpointFile:
        """What a training like this one goes on from after it was stopped or killed.

        Only one on the same `lessons` (a digest of cases and labels): a label that came or changed since would count as
        learned.
        """
        request, champion = self.here.request, self.champion
        identity = {
            "kind": request.kind,
            "start": request.start,
            # From the base it is the same training whatever is published in between.
            "champion": 0 if champion is None or self.starts_fresh else champion.version,
            "lessons": lessons,
            "view": self.here.view_digest,
            "seed": self.here.settings.training.seed,
            "base": base_sha256,
            "labels": dict(self.here.view.labels),
            "dims": asdict(model.dims) if model.dims is not None else {},
            "image_size": model.spec.image_size,
            # Not the very code: what was learned stays learned after a correction of something else.
            "code": self.here.code_version,
        }
        usual = request.start == ("base" if request.kind == "full" else "champion")
        name = request.kind if usual else f"{request.kind}-{request.start}"
        path = self.here.state / FOLDER / f"{name}.pt"
        return CheckpointFile(path, identity, self.here.settings.training.checkpoint_seconds)

    def train(
        self, model: MedSA, cases: Sequence[TrainingCase], checkpoint: CheckpointFile | None
    ) -> TrainResult:
        """Trains `model` for as long as was asked for, together with the other workers."""
        return self._train(model, cases, self.options(), checkpoint, self.share)

    def train_fold(
        self,
        model: MedSA,
        start: Weights,
        cases: Sequence[TrainingCase],
        folds: int,
        left: int,
        on_progress: Callable[[Progress], None],
    ) -> Weights:
        """What training on `cases` from the same start gives; all folds together take as long as the training.

        `left` are those that are not trained yet, this one among them.
        """
        model.load_adapter_state(start)
        options = self.options()
        alone = replace(self, here=replace(self.here, world=ALONE), on_progress=on_progress)
        result = alone._train(
            model, cases, replace(options, seconds=options.seconds / folds), None, 1.0 / left
        )
        self.here.check_stop(result.stopped)
        return model.adapter_state()

    def options(self) -> TrainOptions:
        """As the settings and the request say."""
        training, minutes = self.here.settings.training, self.here.request.minutes
        # Weights that are good already are moved less: at the full rate they lose about what they gain.
        rate = 1.0 if self.champion is None or self.starts_fresh else training.refining_share
        return TrainOptions(
            seconds=60.0 * self.share * (training.train_minutes if minutes is None else minutes),
            learning_rate=rate * training.learning_rate,
            batch_slices=training.batch_slices,
            prompts_per_slice=training.prompts_per_slice,
            seed=training.seed,
            small_share=training.small_share,
            single_share=training.single_share,
            new=self.new,
            new_share=training.new_share,
            recorded_share=training.recorded_share,
        )

    def adapter_config(self, model: MedSA, base_sha256: str) -> AdapterConfig:
        """What the adapter of `model` is for."""
        view = self.here.view
        return AdapterConfig(
            base_name=model.spec.name,
            base_sha256=base_sha256,
            dims=asdict(model.dims) if model.dims is not None else {},
            labels=dict(view.labels),
            intensity=view.intensity.model_dump(mode="json"),
            code_version=self.here.code_version,
            image_size=model.spec.image_size,
        )

    def _end(self, part: float) -> datetime | None:
        """When a training that begins now has to end for its run to be over in time."""
        until, now = self.here.request.until, self.here.now()
        return None if until is None else now + part * TRAINING_SHARE * (until - now)

    def _size(self, start: MedSA, cases: Sequence[TrainingCase]) -> int:
        if start.trained or self.here.settings.serving.image_size is not None:
            return start.spec.image_size
        return fitting_size(start.spec, [case.geometry for case in cases])

    def _train(
        self,
        model: MedSA,
        cases: Sequence[TrainingCase],
        options: TrainOptions,
        checkpoint: CheckpointFile | None,
        part: float,
    ) -> TrainResult:
        """`part` is what this training may take of the time for training that is left, where that has an end."""
        here, end = self.here, self._end(part)
        return train(
            model,
            cases,
            options,
            clock=here.clock,
            on_progress=self.on_progress,
            should_stop=here.should_stop,
            is_late=lambda: end is not None and here.now() >= end,
            clicks=here.clicks,
            checkpoint=checkpoint,
            world=here.world,
        )
