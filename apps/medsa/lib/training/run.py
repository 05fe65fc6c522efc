"""A whole training run: load, split, train, compare with the serving adapter, publish or refuse, record.

One run at a time for a state folder: it holds the file lock `training.lock` throughout, and publishes under
the lock of `lib.training.releases` (order: training lock, then releases lock). `progress.json` is for
readers, who need no lock. A killed run changes nothing that serves; what it left is removed by the next one.
"""

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lib.errors import (
    AlreadyTrainingError,
    DivergenceError,
    TrainingError,
    TrainingStopped,
    UnjudgedError,
)
from lib.files import file_digest, remove_parts_of
from lib.memory import keep_freed_memory
from lib.model.adapter_io import AdapterConfig, save_adapter
from lib.model.medsa import MedSA
from lib.settings import Settings
from lib.training.ancestry import known_scores, patients_in, seen_by, trained_labels
from lib.training.cases import CaseFile, Skipped
from lib.training.checkpoint import CheckpointFile, remove_parts
from lib.training.choice import (
    NO_LABELS,
    Choice,
    choose,
    grouping,
    to_read,
    without_patients_of,
)
from lib.training.circumstances import BuildModel, Circumstances
from lib.training.gate import Rules
from lib.training.judging import HALF, Exam, Judge, Verdict, Weights
from lib.training.loop import Progress, TrainResult
from lib.training.pending import pending_labels
from lib.training.progress_file import NAME as PROGRESS
from lib.training.progress_file import ProgressFile, read_progress
from lib.training.record import RunRecord, write_card
from lib.training.releases import Releases
from lib.training.request import RunRequest
from lib.training.shelf import Shelf
from lib.training.slabs import TrainingCase
from lib.training.suspicion import LEAST, still_suspicious, suspects
from lib.training.teaching import Teacher
from lib.training.tracking import Track, Tracked, untracked
from lib.training.validation import ObjectScore, agreements, as_scores, validate
from lib.training.world import ALONE, World
from lib.version import VERSION

log = logging.getLogger(__name__)

# The server holds the lock for an instant when it looks whether a run is under way.
LOCK_PATIENCE_S = 1.0
LOOK_S = 0.02
LOCK = "training.lock"  # held by a run from its beginning to its end, whatever that is
# Training cases that are looked at for labels that do not fit: a second or two each.
MAX_LOOKED_AT = 60
PLAIN_REQUEST = RunRequest()


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
    track: Track = untracked,
) -> RunRecord:
    """Trains on `files` as `request` says, and publishes the result if the gate lets it.

    `build_model()` gives the base with fresh adapters and the base file's SHA-256. `should_stop` ends the run
    early, publishing nothing. `track` is `lib.training.tracking.run` or nothing. Of several workers (`world`)
    the first one does it all, and the others, whose record says "followed", train along. Raises
    AlreadyTrainingError when another run holds the lock, TrainingError when there is no label, or too few patients or
    cases to publish from; whatever is raised after the lock was taken is recorded as a failed run.
    """
    here = Circumstances(
        state, settings, build_model, request, device, code_version, clock, now, should_stop, world, track
    )
    keep_freed_memory()
    _take_threads(settings.training.train_threads)
    if not world.leads:
        return follow(here, files)
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / LOCK, timeout=LOCK_PATIENCE_S):
            return _Run(here).execute(files)
    except Timeout as error:
        world.told(None)  # the others wait to hear what to train
        holder = read_progress(state).get("pid", "unknown")
        raise AlreadyTrainingError(
            f"a training run is under way already (process {holder}); wait for its end"
        ) from error


def _take_threads(most: int | None) -> None:
    """Leaves the other cores to whoever else uses this machine; for good, since a training has its own process."""
    if most is not None:
        torch.set_num_threads(min(most, torch.get_num_threads()))


def is_under_way(state: Path) -> bool:
    """Whether a run holds the training lock of `state`; it is taken for a moment to find out."""
    path = state / LOCK
    if not path.is_file():
        return False
    try:
        # Another one who only looks holds it for a moment, too.
        FileLock(path).acquire(timeout=LOOK_S, poll_interval=LOOK_S / 2).lock.release()
    except Timeout:
        return True
    return False


def facts_of(result: TrainResult) -> dict[str, Any]:
    """What a record says of a training; the loss is the mean of the last steps, the figure to watch from run to run."""
    tail = result.losses[-20:]
    loss = round(sum(tail) / len(tail), 4) if tail else None
    return {"steps": result.steps, "loss": loss, "events": result.events}


def follow(here: Circumstances, files: Sequence[CaseFile]) -> RunRecord:
    """What every worker but the first does: the same training on other slices, and nothing else.

    Raises TrainingError where a case cannot be read here.
    """
    plan = here.world.told(None)
    if plan is None:
        # It was stopped, or refused what nothing can judge: no failure of anybody.
        reason = "the first worker did not get as far as training; its record says why"
        return RunRecord("followed", (reason,), here.now().isoformat(timespec="seconds"), 0)
    shelf, _ = Shelf.of([file for file in files if file.case_id in plan["cases"]], here.view.labels)
    missing = [case_id for case_id in plan["cases"] if case_id not in shelf.labels_of]
    if missing:
        raise TrainingError(f"worker {here.world.rank} cannot read the cases {', '.join(missing)}")
    champion = Releases(here.state).champion()
    teacher = Teacher(here, champion, frozenset(plan["new"]), lambda progress: None, plan["share"])
    base, base_sha256 = here.build_model()
    served = teacher.served(base, base_sha256)
    training = shelf.pick(plan["cases"])
    model, prepared = teacher.prepared(base if teacher.starts_fresh else served, training, plan["image_size"])
    result = teacher.train(model, prepared, teacher.checkpoint(model, base_sha256, plan["lessons"]))
    version = 0 if champion is None else champion.version
    return RunRecord("followed", (), here.now().isoformat(timespec="seconds"), version, **facts_of(result))


class _Run:
    """One run while it holds the training lock. `record` grows with what has been done so far."""

    def __init__(self, here: Circumstances) -> None:
        self.here, self.view, self.plan_told = here, here.view, False
        self.releases = Releases(here.state)
        started, request = here.now(), here.request
        self.record = RunRecord(
            "failed",
            (),
            started.isoformat(timespec="seconds"),
            0,
            kind=request.kind,
            trigger=request.trigger,
            start=request.start,
            minutes=here.settings.training.train_minutes if request.minutes is None else request.minutes,
            code_version=here.code_version,
            view=here.view_digest,
        )
        self.group_of = grouping(here.settings.task.patient, {})
        self.progress = ProgressFile(here.state, os.getpid(), started, 0)
        self.tracked = Tracked({}, time.time)

    def execute(self, files: Sequence[CaseFile]) -> RunRecord:
        """The whole run; every end of it that is not a kill leaves a record."""
        with self.here.track(self.here.state, self._tracked_parameters()) as tracked:
            self.tracked = tracked
            try:
                return self._recorded(files)
            finally:
                tracked.finish(self.record.to_json())

    def _tracked_parameters(self) -> dict[str, Any]:
        """What the run is made with. No case: this is made to be shown around."""
        return {
            **self.here.request.to_json(),
            "time": self.record.time,
            "settings": self.here.settings.training.model_dump(mode="json"),
        }

    def _recorded(self, files: Sequence[CaseFile]) -> RunRecord:
        try:
            with self.releases.writing():
                self.releases.clean()
            remove_parts(self.here.state)
            remove_parts_of(self.here.state / PROGRESS)
            self._attempt(files)
        except TrainingStopped as error:
            self._tell_plan(None)
            self._note(decision="stopped", reasons=(str(error),))
            self.releases.record(self.record.to_json())
        except UnjudgedError as error:
            # As the gate would say after the training; tried again, the same labels would end in the same way.
            self._tell_plan(None)
            self._note(decision="refused", reasons=(str(error),))
            self.releases.record(self.record.to_json())
        except Exception as error:
            self._tell_plan(None)
            self._note(decision="failed", reasons=(str(error) or type(error).__name__,))
            self.releases.record(self.record.to_json())
            self._end()
            raise
        self._end()
        return self.record

    def _attempt(self, files: Sequence[CaseFile]) -> None:
        with self._stage("loading"):
            champion = self.releases.champion_version()
            self.progress.version = champion
            self._note(champion=champion)
            shelf, choice = self._cases(files)
            teacher = self._teacher(choice)
            base, base_sha256 = self.here.build_model()
            served = teacher.served(base, base_sha256)
            training = shelf.pick(choice.training)
            model, prepared = teacher.prepared(base if teacher.starts_fresh else served, training)
        with self._stage("evaluating the serving version"):
            before = self._champion_scores(served, shelf, choice)
        start, checkpoint = (
            model.adapter_state(),
            teacher.checkpoint(model, base_sha256, self._lessons(choice)),
        )
        exams = self._train(teacher, model, prepared, checkpoint, shelf, choice)
        with self._stage("evaluating the candidate"):
            judge = self._judge(model, before, None if teacher.starts_fresh else start, shelf)
            verdict = judge.judge(exams)
            model.load_adapter_state(judge.weights(exams[0].trained, verdict.share))
            self._note_verdict(verdict)
        with self._stage("looking for labels that do not fit"):
            self._look_for_suspects(model, shelf, choice.training, verdict)
        self._conclude(model, teacher.adapter_config(model, base_sha256), verdict)
        # Not before: a kill in between evaluates again, and does not train again.
        checkpoint.remove()

    def _teacher(self, choice: Choice) -> Teacher:
        # A run has its minutes for all that it trains; only the first one, from nothing, takes twice as long.
        champion = self.releases.champion()
        shares = bool(choice.folds) and (self.here.request.kind == "full" or champion is not None)
        return Teacher(self.here, champion, self._new_cases(), self._on_progress, HALF if shares else 1.0)

    def _lessons(self, choice: Choice) -> str:
        """Names what is trained on: the cases and their labels as they are now."""
        labels = [(case, self.record.label_digests.get(case)) for case in choice.training]
        return hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16]

    def _train(
        self,
        teacher: Teacher,
        model: MedSA,
        prepared: Sequence[TrainingCase],
        checkpoint: CheckpointFile,
        shelf: Shelf,
        choice: Choice,
    ) -> list[Exam]:
        """Trains on all cases, then without those of each fold: what is judged, the whole training first."""
        start = model.adapter_state()
        with self._stage("training"):
            size = model.spec.image_size
            self._tell_plan(
                {
                    "cases": choice.training,
                    "new": sorted(teacher.new),
                    "image_size": size,
                    "share": teacher.share,
                    "lessons": self._lessons(choice),
                }
            )
            try:
                result = teacher.train(model, prepared, checkpoint)
            except DivergenceError:
                checkpoint.remove()  # it leads to the same end
                raise
        trained_minutes = round(result.seconds / teacher.share / 60.0, 3)
        self._note(**facts_of(result), resumed=result.resumed, trained_minutes=trained_minutes)
        self.here.check_stop(result.stopped)
        if result.steps == 0:
            # Not refused: its labels are still to be learned.
            raise TrainingError(
                "the time was over before the first step: give it more minutes, or a later `until`"
            )
        exams = [Exam(shelf.pick(choice.validation), model.adapter_state())]
        for number, fold in enumerate(choice.folds, 1):
            name = f"leave-one-out, fold {number} of {len(choice.folds)}"
            with self._stage(name):
                kept = without_patients_of(choice.training, fold, self.group_of)
                others = [case for case in prepared if case.case_id in kept]
                folds, left = len(choice.folds), len(choice.folds) - number + 1
                on_progress = partial(self._on_fold_progress, name)
                weights = teacher.train_fold(model, start, others, folds, left, on_progress)
                exams.append(Exam(shelf.pick(fold), weights))
        return exams

    def _tell_plan(self, plan: dict[str, Any] | None) -> None:
        """Tells the other workers what to train along with, once; None: nothing comes."""
        if not self.plan_told:
            self.plan_told = True
            self.here.world.told(plan)

    def _judge(
        self,
        model: MedSA,
        before: Sequence[ObjectScore],
        start: Weights | None,
        shelf: Shelf,
    ) -> Judge:
        training = self.here.settings.training
        rules = Rules(training.gate_margin, training.gate_confidence, training.seed, self.group_of)
        return Judge(model, self.view, before, self._expected(shelf), rules, start, self.here.between_cases)

    def _note_verdict(self, verdict: Verdict) -> None:
        self._note(
            scores={**self.record.scores, "candidate": verdict.objects},
            half_way=verdict.decision.publish and verdict.share < 1.0,
        )

    def _look_for_suspects(
        self, model: MedSA, shelf: Shelf, training: Sequence[str], verdict: Verdict
    ) -> None:
        """Names the labels, new ones or in a full run all, that the new weights agree with far less than with
        others.
        """
        new = self._new_cases()
        known = {one.case_id for one in verdict.objects}
        full = self.here.request.kind == "full"
        looked_at = [case for case in training if case not in known and (full or case in new)]
        # Others each time, where they are too many for one run.
        random.Random(len(self.releases.records())).shuffle(looked_at)
        chosen = shelf.pick(looked_at[:MAX_LOOKED_AT])
        found = agreements(model, chosen, self.view, self.here.between_cases, self.here.is_over)
        judged = [one.agreement for one in verdict.objects]
        agreed = [*judged, *found]
        suspicious = suspects(agreed)
        # Where they are too few to say anything, what earlier runs have said stands.
        cases = tuple(dict.fromkeys(one.case_id for one in agreed)) if len(agreed) >= LEAST else ()
        self._note(suspicious=suspicious, looked_at=cases)
        for one in suspicious:
            log.warning(
                "the label %s of %s may be wrong: Dice %.2f after %d clicks, %.2f is usual; it is used all the same",
                one.label,
                one.case_id,
                one.dice,
                one.clicks,
                one.typical,
            )

    def _cases(self, files: Sequence[CaseFile]) -> tuple[Shelf, Choice]:
        """The usable cases by id, and what each is for; raises TrainingError when there are too few."""
        if not files:
            raise TrainingError(NO_LABELS)
        digests = {file.case_id: file_digest(file.label) for file in files if file.label.is_file()}
        # A new label whose image may be had another time waits for that.
        away = {file.case_id for file in files if file.away}
        waiting = away & set(pending_labels(digests, self.releases.records()))
        self._note(label_digests={case: digest for case, digest in digests.items() if case not in waiting})
        patients = {file.case_id: file.patient for file in files if file.patient is not None}
        known = {**patients_in(self.releases.records()), **patients}
        self.group_of = grouping(self.here.settings.task.patient, known)
        taken = self._taken(files)
        shelf, skipped = Shelf.of(taken, self.view.labels, self.here.between_cases)
        self._note(skipped=tuple(skipped), not_replayed=len(files) - len(taken))
        for case in skipped:
            log.warning("training skips %s: %s", case.case_id, case.reason)
        try:
            choice = self._choose(shelf)
        except TrainingError as error:
            raise type(error)("; ".join([str(error), *_reasons(skipped)])) from error
        self._note(
            trained=choice.training,
            validated=choice.validation,
            left_out=choice.folds,
            held_back=choice.held_back,
            method=choice.method,
            trained_labels=self._in_order(shelf.occurring(choice.training)),
            patients={case: patients[case] for case in choice.training if case in patients},
        )
        return shelf, choice

    def _taken(self, files: Sequence[CaseFile]) -> list[CaseFile]:
        """What the run looks at: all; an incremental one some of the older cases only (`choice.to_read`).

        Labels that look wrong, and that what serves has not learned, are not among these.
        """
        if self.here.request.kind == "full":
            return list(files)
        records, training = self.releases.records(), self.here.settings.training
        seen = seen_by(records, self.record.champion)
        judged = {case for record in records for case in record.get("validated", ())} - seen
        always = self._new_cases() | judged
        # Others in each run; the same ones in one that goes on after a stop.
        seed = training.seed + sum(record.get("decision") != "stopped" for record in records)
        doubted = {str(row["case_id"]) for row in still_suspicious(records, self.record.label_digests)}
        others = {file.case_id for file in files} - always - (doubted - seen)
        fraction, most = training.validation_fraction, training.replayed_cases
        chosen = always | to_read(others, seen, fraction, self.group_of, most, seed)
        return [file for file in files if file.case_id in chosen]

    def _in_order(self, names: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name in self.view.labels if name in names)

    def _choose(self, shelf: Shelf) -> Choice:
        seen = seen_by(self.releases.records(), self.record.champion)
        settings = self.here.settings
        fraction = settings.training.validation_fraction
        return choose(shelf.labels_of, self._expected(shelf), fraction, self.group_of, seen)

    def _expected(self, shelf: Shelf) -> tuple[str, ...]:
        """The labels to be judged: those that occur, and those that the serving version has learned."""
        learned = trained_labels(self.releases.records(), self.record.champion, self.view.labels)
        return self._in_order(shelf.occurring() | set(learned))

    def _champion_scores(self, served: MedSA, shelf: Shelf, choice: Choice) -> list[ObjectScore]:
        """Those of its own publication where they hold still, else made now."""
        images = {}
        for case_id in choice.validation:
            self.here.between_cases()  # they may be large, and far away
            images[case_id] = shelf.image_digest(case_id)
        self._note(scoring=self.here.scoring(served), image_digests=images)
        known = known_scores(
            self.releases.records(),
            self.record.champion,
            self.record.label_digests,
            images,
            self.record.scoring,
        )
        old = [one for one in known if one.case_id in choice.judged]
        done = {one.case_id for one in old}
        asked = shelf.pick([case_id for case_id in choice.judged if case_id not in done])
        new = validate(served, asked, self.view, self.here.between_cases)
        objects = [*old, *new]
        self._note(scores={"champion": tuple(objects)})
        self.progress.best_metric = as_scores(objects, list(self.view.labels), self.view.labels).overall
        return objects

    def _conclude(self, model: MedSA, config: AdapterConfig, verdict: Verdict) -> None:
        decision = verdict.decision
        with self.releases.writing():
            if self.releases.champion_version() != self.record.champion:
                # Not refused: its labels are still to be learned, by what serves now.
                raise TrainingError("the serving version was changed during the run")
            self._note(decision="published" if decision.publish else "refused", reasons=decision.reasons)
            if not decision.publish:
                self.releases.record(self.record.to_json())
                return
            card = write_card(config, self.record)
            release = self.releases.publish(
                lambda folder: save_adapter(folder, model, config, card), self.record.to_json()
            )
        self._note(version=release.version)
        self.progress.version = release.version
        after = as_scores(verdict.objects, list(self.view.labels), self.view.labels)
        self.progress.best_metric = after.overall

    def _new_cases(self) -> frozenset[str]:
        """Those whose label no finished run has seen; a full run learns from all alike."""
        if self.here.request.kind == "full":
            return frozenset()
        return frozenset(pending_labels(self.record.label_digests, self.releases.records()))

    def _on_fold_progress(self, name: str, progress: Progress) -> None:
        self.progress.write(f"{name}: step {progress.steps}", progress.fraction, self.here.now())

    def _on_progress(self, progress: Progress) -> None:
        self.tracked.metrics(progress.steps, {"loss": progress.loss})
        self.progress.loss = progress.loss
        self.progress.write(
            f"training: step {progress.steps}, loss {progress.loss:.3f}", progress.fraction, self.here.now()
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Shows what is being done, and notes how long it took."""
        self.progress.write(name, 1.0 if "candidate" in name else 0.0, self.here.now())
        started = self.here.clock()
        yield
        self._note(seconds={**self.record.seconds, name: round(self.here.clock() - started, 2)})

    def _note(self, **facts: Any) -> None:
        self.record = replace(self.record, **facts)

    def _end(self) -> None:
        text = "; ".join([self.record.decision, *self.record.reasons])
        log.info("training run: %s", text)
        self.progress.write(text, 1.0, self.here.now(), running=False)


def _reasons(skipped: Sequence[Skipped]) -> list[str]:
    return [f"{case.case_id} was skipped: {case.reason}" for case in skipped]
