"""A whole training run: load, split, train, compare with the serving adapter, publish or refuse, record.

One run at a time for a state folder: it holds the file lock `training.lock` throughout, and publishes under
the lock of `lib.training.releases` (order: training lock, then releases lock). `progress.json` is for
readers, who need no lock. A killed run changes nothing that serves; what it left is removed by the next one.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from lib.errors import TrainingError
from lib.memory import keep_freed_memory
from lib.model.adapter_io import AdapterConfig, adapted, save_adapter
from lib.model.medsa import MedSA
from lib.settings import Settings
from lib.training.cases import Case, CaseFile, Skipped, label_digest, load_cases, split
from lib.training.checkpoint import FOLDER, CheckpointFile, remove_parts
from lib.training.clicks_first import ClicksFirst
from lib.training.gate import Decision, Scores, decide
from lib.training.image_size import fitting_size
from lib.training.loop import Progress, TrainOptions, TrainResult, train
from lib.training.pending import pending_labels
from lib.training.progress_file import ProgressFile, read_progress
from lib.training.record import RunRecord, write_card
from lib.training.releases import Releases
from lib.training.request import RunRequest
from lib.training.slabs import TrainingCase, prepare_case
from lib.training.validation import as_scores, validate
from lib.training.viewpoint import Viewpoint
from lib.training.world import ALONE, World
from lib.version import VERSION

log = logging.getLogger(__name__)

# The server holds the lock for an instant when it looks whether a run is under way.
LOCK_PATIENCE_S = 1.0
# Bounds the time a decision takes. Those beyond it, by hash, wait: trained on they could never validate again.
MAX_VALIDATION_CASES = 12

PLAIN_REQUEST = RunRequest()

BuildModel = Callable[[], tuple[MedSA, str]]


def run_training(
    state: Path,
    files: Sequence[CaseFile],
    settings: Settings,
    build_model: BuildModel,
    *,
    request: RunRequest = PLAIN_REQUEST,
    device: str = "cpu",
    code_version: str = VERSION,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> RunRecord:
    """Trains on `files` as `request` says, and publishes the result if the gate lets it.

    `build_model()` gives the base with fresh adapters and the base file's SHA-256. `should_stop` ends the run
    early, publishing nothing. Of several workers (`world`) the first one does it all, and the others, whose record
    says "followed", train along. Raises TrainingError when another run holds the lock, when there is no label,
    or fewer than two usable cases; whatever is raised after the lock was taken is recorded as a failed run.
    """
    keep_freed_memory()
    if not world.leads:
        run = _Run(state, settings, request, device, code_version, clock, now, should_stop, world)
        return run.follow(files, build_model)
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / "training.lock", timeout=LOCK_PATIENCE_S):
            run = _Run(state, settings, request, device, code_version, clock, now, should_stop, world)
            return run.execute(files, build_model)
    except Timeout as error:
        world.told(None)  # the others wait to hear what to train
        holder = read_progress(state).get("pid", "unknown")
        raise TrainingError(
            f"a training run is under way already (process {holder}); wait for its end"
        ) from error


class _Run:
    """One run while it holds the training lock. `record` grows with what has been done so far."""

    def __init__(
        self,
        state: Path,
        settings: Settings,
        request: RunRequest,
        device: str,
        code_version: str,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        should_stop: Callable[[], bool],
        world: World,
    ) -> None:
        self.state, self.world, self.plan_told = state, world, False
        self.settings, self.request, self.code_version = settings, request, code_version
        self.clock, self.now, self.should_stop = clock, now, should_stop
        self.releases = Releases(state)
        task = settings.task
        self.view = Viewpoint(task.labels, task.intensity, task.slice_axis, device, task.flips)
        started = now()
        self.record = RunRecord(
            "failed",
            (),
            started.isoformat(timespec="seconds"),
            0,
            kind=request.kind,
            trigger=request.trigger,
            start=request.start,
        )
        self.progress = ProgressFile(state, os.getpid(), started, 0)

    def execute(self, files: Sequence[CaseFile], build_model: BuildModel) -> RunRecord:
        """The whole run; every end of it that is not a kill leaves a record."""
        try:
            self.releases.clean()
            remove_parts(self.state)
            self._attempt(files, build_model)
        except Exception as error:
            self._tell_plan(None)
            self._note(decision="failed", reasons=(str(error) or type(error).__name__,))
            self.releases.record(self.record.to_json())
            self._end()
            raise
        self._end()
        return self.record

    def _attempt(self, files: Sequence[CaseFile], build_model: BuildModel) -> None:
        with self._stage("loading"):
            champion = self.releases.champion_version()
            self.progress.version = champion
            self._note(champion=champion)
            training, validation = self._cases(files)
            base, base_sha256 = build_model()
            served = self._served(base, base_sha256)
            model, prepared = self._to_train(base if self._starts_fresh() else served, training)
        with self._stage("evaluating the serving version"):
            before = self._scores(served, "champion", training, validation)
        serving = model.adapter_state()
        checkpoint = self._checkpoint(model, base_sha256)
        with self._stage("training"):
            self._tell_plan(
                {"cases": self.record.trained, "champion": champion, "image_size": model.spec.image_size}
            )
            result = self._train(model, prepared, checkpoint)
        self._note(steps=result.steps, loss=_last_loss(result), resumed=result.resumed, events=result.events)
        if result.stopped:
            self._note(decision="stopped", reasons=("the run was asked to stop",))
            self.releases.record(self.record.to_json())
            return
        with self._stage("evaluating the candidate"):
            decision, after = self._judge(model, serving, before, training, validation)
        self._conclude(model, base_sha256, decision, after)
        # Not before: a kill in between evaluates again, and does not train again.
        checkpoint.remove()

    def follow(self, files: Sequence[CaseFile], build_model: BuildModel) -> RunRecord:
        """What every worker but the first does: the same training on other slices, and nothing else."""
        plan = self.world.told(None)
        if plan is None:
            raise TrainingError("the first worker did not get as far as training; its record says why")
        cases, _ = load_cases([file for file in files if file.case_id in plan["cases"]], self.view.labels)
        by_id = {case.case_id: case for case in cases}
        missing = [case_id for case_id in plan["cases"] if case_id not in by_id]
        if missing:
            raise TrainingError(f"worker {self.world.rank} cannot read the cases {', '.join(missing)}")
        self._note(champion=plan["champion"], decision="followed")
        digests = {file.case_id: label_digest(file.label) for file in files if file.label.is_file()}
        self._note(label_digests=digests)
        base, base_sha256 = build_model()
        start = base.to(self.view.device) if self._starts_fresh() else self._served(base, base_sha256)
        size = plan["image_size"]
        model = start if start.spec.image_size == size else start.at_size(size)
        spec = model.spec
        training = [by_id[case_id] for case_id in plan["cases"]]
        prepared = [prepare_case(case, self.view, spec.image_size, spec.mask_size) for case in training]
        result = self._train(model, prepared, self._checkpoint(model, base_sha256))
        self._note(steps=result.steps, loss=_last_loss(result), events=result.events)
        return self.record

    def _tell_plan(self, plan: dict[str, Any] | None) -> None:
        """Tells the other workers what to train along with, once; None: nothing comes."""
        if not self.plan_told:
            self.plan_told = True
            self.world.told(plan)

    def _starts_fresh(self) -> bool:
        return self.request.start == "base"

    def _train(
        self, model: MedSA, prepared: Sequence[TrainingCase], checkpoint: CheckpointFile
    ) -> TrainResult:
        return train(
            model,
            prepared,
            self._options(),
            clock=self.clock,
            on_progress=self._on_progress,
            should_stop=self.should_stop,
            clicks=ClicksFirst.under(self.state),
            checkpoint=checkpoint,
            world=self.world,
        )

    def _to_train(self, start: MedSA, training: Sequence[Case]) -> tuple[MedSA, list[TrainingCase]]:
        """The network to train, and its cases.

        One that was trained goes on at its image size; a fresh one takes that which fits the slices.
        """
        spec = start.spec
        prepared = [prepare_case(case, self.view, spec.image_size, spec.mask_size) for case in training]
        if start.trained or self.settings.serving.image_size is not None:
            return start, prepared
        size = fitting_size(spec, [case.geometry for case in prepared])
        if size == spec.image_size:
            return start, prepared
        log.info("training on images of %d pixels, not %d: no slice has more voxels", size, spec.image_size)
        model = start.at_size(size)
        return model, [case.at_size(size, model.spec.mask_size) for case in prepared]

    def _checkpoint(self, model: MedSA, base_sha256: str) -> CheckpointFile:
        """What a training like this one goes on from after it was stopped or killed."""
        identity = {
            "kind": self.request.kind,
            "start": self.request.start,
            "champion": self.record.champion if self.request.start == "champion" else 0,
            "base": base_sha256,
            "labels": dict(self.view.labels),
            "dims": asdict(model.dims) if model.dims is not None else {},
            "image_size": model.spec.image_size,
            "minutes": self._options().seconds / 60.0,
            "code": self.code_version,
        }
        path = self.state / FOLDER / f"{self.request.kind}.pt"
        return CheckpointFile(path, identity, self.settings.training.checkpoint_seconds)

    def _judge(
        self,
        model: MedSA,
        serving: Mapping[str, Tensor],
        before: Scores,
        training: Sequence[Case],
        validation: Sequence[Case],
    ) -> tuple[Decision, Scores]:
        """The gate on the trained weights and, where it refuses those, on the mean of them and the serving ones.

        With few labels a run learns its cases better than the structure; half of the way often keeps what is general
        (Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022).
        Leaves `model` with what was judged last.
        """
        margin = self.settings.training.gate_margin
        after = self._scores(model, "candidate", training, validation)
        decision = decide(before, after, margin)
        if decision.publish or self._starts_fresh():
            # There is no way between weights that do not come from each other.
            return decision, after
        trained = model.adapter_state()
        model.load_adapter_state({key: (serving[key] + value) / 2 for key, value in trained.items()})
        after = self._scores(model, "candidate", training, validation)
        half_way = decide(before, after, margin)
        reasons = tuple(f"half way to it: {reason}" for reason in half_way.reasons)
        if half_way.publish:
            self._note(half_way=True)
            return Decision(True, reasons), after
        return Decision(False, (*decision.reasons, *reasons)), after

    def _cases(self, files: Sequence[CaseFile]) -> tuple[list[Case], list[Case]]:
        """The cases to train on and to validate on; raises TrainingError when there are too few."""
        if not files:
            raise TrainingError("no labels: save a label first, training needs at least 2 labelled cases")
        digests = {file.case_id: label_digest(file.label) for file in files if file.label.is_file()}
        self._note(label_digests=digests)
        cases, skipped = load_cases(files, self.view.labels)
        self._note(skipped=tuple(skipped))
        for case in skipped:
            log.warning("training skips %s: %s", case.case_id, case.reason)
        by_id = {case.case_id: case for case in cases}
        try:
            train_ids, validation_ids = split(
                by_id, self.settings.training.validation_fraction, self._trained_before()
            )
        except TrainingError as error:
            raise TrainingError("; ".join([str(error), *_reasons(skipped)])) from error
        validation_ids = validation_ids[:MAX_VALIDATION_CASES]
        training = [by_id[key] for key in train_ids]
        self._note(
            trained=tuple(train_ids),
            validated=tuple(validation_ids),
            trained_labels=tuple(_occurring(training, self.view.labels)),
        )
        return training, [by_id[key] for key in validation_ids]

    def _trained_before(self) -> set[str]:
        return {case_id for record in self.releases.records() for case_id in record.get("trained", ())}

    def _served(self, base: MedSA, base_sha256: str) -> MedSA:
        """The network as it serves, which `base` is without a release.

        Raises AdapterError for an adapter that misfits.
        """
        base.to(self.view.device)
        champion = self.releases.champion()
        if champion is None:
            return base
        served = adapted(champion.folder, base, base_sha256, self.view.labels)
        if served.dims != base.dims and self.request.start == "champion":
            log.warning("training goes on with the serving adapter's %s, not with %s", served.dims, base.dims)
        return served

    def _scores(self, model: MedSA, who: str, training: Sequence[Case], validation: Sequence[Case]) -> Scores:
        objects = validate(model, validation, self.view)
        self._note(scores={**self.record.scores, who: tuple(objects)})
        occurring = _occurring([*training, *validation], self.view.labels)
        scores = as_scores(objects, validation, occurring, self.view.labels)
        if who == "champion":
            self.progress.best_metric = scores.overall
        return scores

    def _conclude(self, model: MedSA, base_sha256: str, decision: Decision, after: Scores) -> None:
        with self.releases.writing():
            if self.releases.champion_version() != self.record.champion:
                decision = Decision(False, ("the serving version was changed during the run",))
            self._note(decision="published" if decision.publish else "refused", reasons=decision.reasons)
            if not decision.publish:
                self.releases.record(self.record.to_json())
                return
            config = self._adapter_config(model, base_sha256)
            card = write_card(config, self.record)
            release = self.releases.publish(
                lambda folder: save_adapter(folder, model, config, card), self.record.to_json()
            )
        self._note(version=release.version)
        self.progress.version, self.progress.best_metric = release.version, after.overall

    def _adapter_config(self, model: MedSA, base_sha256: str) -> AdapterConfig:
        return AdapterConfig(
            base_name=model.spec.name,
            base_sha256=base_sha256,
            dims=asdict(model.dims) if model.dims is not None else {},
            labels=dict(self.view.labels),
            intensity=self.view.intensity.model_dump(mode="json"),
            code_version=self.code_version,
            image_size=model.spec.image_size,
        )

    def _options(self) -> TrainOptions:
        training = self.settings.training
        minutes = self.request.minutes
        return TrainOptions(
            seconds=60.0 * (training.train_minutes if minutes is None else minutes),
            learning_rate=training.learning_rate,
            batch_slices=training.batch_slices,
            prompts_per_slice=training.prompts_per_slice,
            seed=training.seed,
            small_share=training.small_share,
            new=self._new_cases(),
            new_share=training.new_share,
            recorded_share=training.recorded_share,
        )

    def _new_cases(self) -> frozenset[str]:
        """Those whose label no finished run has seen; a full run learns from all alike."""
        if self.request.kind == "full":
            return frozenset()
        return frozenset(pending_labels(self.record.label_digests, self.releases.records()))

    def _on_progress(self, progress: Progress) -> None:
        if not self.world.leads:
            return
        self.progress.write(
            f"training: step {progress.steps}, loss {progress.loss:.3f}", progress.fraction, self.now()
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Shows what is being done, and notes how long it took."""
        self.progress.write(name, 1.0 if "candidate" in name else 0.0, self.now())
        started = self.clock()
        yield
        self._note(seconds={**self.record.seconds, name: round(self.clock() - started, 2)})

    def _note(self, **facts: Any) -> None:
        self.record = replace(self.record, **facts)

    def _end(self) -> None:
        text = "; ".join([self.record.decision, *self.record.reasons])
        log.info("training run: %s", text)
        self.progress.write(text, 1.0, self.now(), running=False)


def _occurring(cases: Sequence[Case], labels: Mapping[str, int]) -> list[str]:
    """The labels that have a voxel in one of the cases."""
    return [name for name, value in labels.items() if any((case.label == value).any() for case in cases)]


def _last_loss(result: TrainResult) -> float | None:
    """Mean loss of the last steps, the figure to watch from run to run."""
    tail = result.losses[-20:]
    return round(sum(tail) / len(tail), 4) if tail else None


def _reasons(skipped: Sequence[Skipped]) -> list[str]:
    return [f"{case.case_id} was skipped: {case.reason}" for case in skipped]
