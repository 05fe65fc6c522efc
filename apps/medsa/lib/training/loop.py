"""The training loop: adapters and label tokens learn from prompts until the time is over.

The first part of the time is spent on images of half the size, where a step costs about a quarter and teaches nearly as
much; the rest on images as they are served. Slices are drawn one by one first, since as many of different cases teach
more than neighbours do that look alike; then as neighbours, for the depth branch.
"""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from torch import nn

from lib.device_memory import free_memory
from lib.errors import TrainingError
from lib.model.medsa import MedSA
from lib.training.abandoning import StepAbandonedError, abandoning
from lib.training.checkpoint import CheckpointFile
from lib.training.clicks_first import NO_CLICKS, ClicksFirst
from lib.training.learner import Diet, Learner, Stage
from lib.training.optimizer import MakeOptimizer, Optimizer
from lib.training.slabs import SMALLEST_GRID, TrainingCase
from lib.training.world import ALONE, World

WARMUP = 0.05  # share of the time over which the learning rate rises
FLOOR = 0.02  # share of the learning rate left at the end
REPORT_SECONDS = 1.0
SMOOTHING = 0.95  # of the loss that is reported
# Clicks may slow a run down to this share of its speed; then its time is over.
SLOWEST = 0.25


@dataclass(frozen=True)
class TrainOptions:
    """What a run is made with; `seconds` is its time budget, `learning_rate` the highest one reached.

    `batch_slices` is about how many slices a step has in all: as many whole slabs as come nearest to it. In the first
    `small_share` of the time images have half the size, where that leaves enough tokens; in the first `single_share`
    every slice is drawn by itself. Cases in `new` are drawn in `new_share` of the draws, if there are others.
    `recorded_share` is how often an annotator's own prompts are asked again.
    """

    seconds: float
    learning_rate: float
    batch_slices: int
    prompts_per_slice: int
    seed: int
    small_share: float = 0.0
    single_share: float = 0.0
    new: frozenset[str] = frozenset()
    new_share: float = 0.5
    recorded_share: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where a run is: `fraction` of its time in 0..1, steps done, seconds of work so far and the smoothed loss."""

    fraction: float
    steps: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class TrainResult:
    """What a run did; `losses` has one number a step, `stopped` says that it was asked to end early.

    `resumed` is the step of the checkpoint that it went on from, 0 for none; `events` are what was not planned.
    """

    steps: int
    seconds: float
    losses: tuple[float, ...]
    stopped: bool
    resumed: int = 0
    events: tuple[str, ...] = ()


def train(
    model: MedSA,
    cases: Sequence[TrainingCase],
    options: TrainOptions,
    *,
    clock: Callable[[], float],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    is_late: Callable[[], bool] = lambda: False,
    clicks: ClicksFirst = NO_CLICKS,
    checkpoint: CheckpointFile | None = None,
    world: World = ALONE,
    parameters: Sequence[nn.Parameter] | None = None,
    make_optimizer: MakeOptimizer = Optimizer.of,
) -> TrainResult:
    """Trains `model.adapters` in place until `options.seconds` of work have passed on `clock`, or `should_stop()`.

    A stop does not wait for the end of a step where that can take long (`abandoning`). When it `is_late()` it ends as
    if the time were over.

    With `parameters` it trains these instead, and as `make_optimizer` has it, which is for comparisons.

    While somebody clicks it waits between steps (`clicks`), which is no work. With a `checkpoint` it goes on from what
    is there, saves what it has every now and then, and at the end. Raises TrainingError when there are no cases, the
    loss stops being a number, or another worker of its `world` is gone.
    """
    if not cases:
        raise TrainingError("no labels: there is nothing to train on")
    run = _Run(model, cases, options, world, checkpoint, parameters, make_optimizer)
    model.train()
    before = reported = clock()
    stopped = False
    while not world.agree(run.fraction >= 1.0 or is_late()):
        if stopped := world.agree(should_stop()):
            break
        waited = clicks.wait(should_stop, lambda: free_memory(run.learner.device))
        if stopped := not run.step(should_stop):
            break
        now = clock()
        run.count(max(0.0, now - before - waited), waited)
        before = now
        if now - reported >= REPORT_SECONDS:
            reported = now
            on_progress(run.progress())
            run.save(force=False)
    run.save(force=True)
    run.learner.finish()
    return run.result(stopped)


def learning_rate_share(fraction: float) -> float:
    """Share of the highest learning rate at `fraction` of the time: linear rise, half a cosine down."""
    if fraction < WARMUP:
        return max(FLOOR, fraction / WARMUP)
    position = min(1.0, (fraction - WARMUP) / (1.0 - WARMUP))
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * position))


def draw_weights(case_ids: Sequence[str], new: Collection[str], new_share: float) -> tuple[float, ...]:
    """How often each case is drawn: the new ones together in `new_share` of the draws, at least as often as the others.

    All alike where all are new, or none is. They add up to 1.
    """
    count, fresh = len(case_ids), sum(case_id in new for case_id in case_ids)
    if fresh in (0, count):
        return (1.0 / count,) * count
    share = max(new_share, fresh / count)
    return tuple(share / fresh if case_id in new else (1.0 - share) / (count - fresh) for case_id in case_ids)


class _Run:
    """Where a run is: its stages, the time that is over, the losses so far."""

    def __init__(
        self,
        model: MedSA,
        cases: Sequence[TrainingCase],
        options: TrainOptions,
        world: World,
        checkpoint: CheckpointFile | None,
        parameters: Sequence[nn.Parameter] | None,
        make_optimizer: MakeOptimizer,
    ) -> None:
        self.options, self.checkpoint, self.world = options, checkpoint, world
        weights = draw_weights([case.case_id for case in cases], options.new, options.new_share)
        diet = Diet(options.batch_slices, options.prompts_per_slice, weights, options.recorded_share)
        self.learner = Learner(model, diet, options.seed, world, parameters, make_optimizer)
        self.full = Stage(model, cases)
        self.small = _half_size(self.full) if options.small_share > 0 else None
        self.stage: Stage | None = None
        self.seconds = options.seconds
        self.worked = self.waited = 0.0
        self.losses: list[float] = []
        self.smooth = math.nan
        self.resumed = self._resume()
        if world.told(self.resumed) != self.resumed:
            raise TrainingError(
                f"worker {world.rank} does not find the checkpoint that the first one goes on from"
            )

    @property
    def fraction(self) -> float:
        """The part of the time that is over. Waiting for clicks counts too, but little."""
        return min(1.0, (self.worked + SLOWEST * self.waited) / self.seconds)

    def step(self, should_stop: Callable[[], bool]) -> bool:
        """One update at the rate and the size of this moment; False when it was left because of a stop."""
        stage = self._stage()
        rate = self.options.learning_rate * learning_rate_share(self.fraction)
        # Workers stop between steps, all after the same one.
        leaving = abandoning(stage.model, should_stop) if self.world.size == 1 else nullcontext()
        try:
            with leaving:
                self.losses.append(self.learner.step(stage, rate))
        except StepAbandonedError:
            return False
        first = math.isnan(self.smooth)
        self.smooth = (
            self.losses[-1] if first else SMOOTHING * self.smooth + (1 - SMOOTHING) * self.losses[-1]
        )
        return True

    def count(self, worked: float, waited: float) -> None:
        """Adds to the time; all workers count what the first one does."""
        worked, waited = self.world.told((worked, waited))
        self.worked += worked
        self.waited += waited

    def progress(self) -> Progress:
        """As readers are told it."""
        return Progress(self.fraction, self.learner.steps, self.worked, self.smooth)

    def save(self, *, force: bool) -> None:
        """Writes a checkpoint when one is due, or at once."""
        if self.checkpoint is None or not self.world.leads or self.learner.steps == 0:
            return
        if force or self.checkpoint.is_due():
            times = [self.seconds, self.worked, self.waited, self.smooth]
            self.checkpoint.write({"learner": self.learner.state(), "times": times})

    def result(self, stopped: bool) -> TrainResult:
        """The run in numbers."""
        events = tuple(self.learner.events)
        return TrainResult(self.learner.steps, self.worked, tuple(self.losses), stopped, self.resumed, events)

    def _resume(self) -> int:
        """Goes on from the checkpoint, if it fits; returns its step, 0 for a fresh start."""
        stored = self.checkpoint.read() if self.checkpoint is not None else None
        if stored is None:
            return 0
        try:
            self.learner.restore(stored["learner"])
            planned, self.worked, self.waited, self.smooth = map(float, stored["times"])
        except (KeyError, ValueError, RuntimeError, TypeError):
            # Of another network than its identity says: there is nothing to go on from.
            return 0
        # As long as was planned then or is now, and in no more time than there is now.
        over = self.worked + SLOWEST * self.waited
        self.seconds = min(max(planned, self.options.seconds), over + self.options.seconds)
        return self.learner.steps

    def _stage(self) -> Stage:
        """The images of this moment and how they are drawn; memory is looked at anew when that changes."""
        sized = self.full
        if self.small is not None and self.fraction < self.options.small_share:
            sized = self.small
        together = self.fraction >= self.options.single_share
        stage = self.stage
        if stage is None or stage.model is not sized.model or stage.together != together:
            self.stage = stage = replace(sized, together=together)
            stage.model.train()
            self.learner.save_memory(stage)
        return stage


def _half_size(full: Stage) -> Stage | None:
    """The same network and cases at half the image size; None where too few tokens would be left."""
    spec = full.model.spec
    if spec.grid % 2 or spec.grid // 2 < SMALLEST_GRID:
        return None
    model = full.model.at_size(spec.image_size // 2)
    return Stage(model, [case.at_size(model.spec.image_size, model.spec.mask_size) for case in full.cases])
