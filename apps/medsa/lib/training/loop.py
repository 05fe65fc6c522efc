"""The training loop: adapters and label tokens learn from simulated prompts until the time is over.

Everything of SAM stays frozen. A step encodes its slices once, answers several prompts on each, then a second
click where the first answers were most wrong. What is kept is the exponential moving average of the weights.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.losses.dice import DiceLoss
from torch import Tensor
from torch.nn import functional

from lib.errors import TrainingError
from lib.memory import available_bytes
from lib.model.base import BaseSpec
from lib.model.medsa import MedSA, Precision, SinglePrompt
from lib.training.samples import (
    Augmentation,
    Batch,
    TrainingCase,
    corrective_prompts,
    draw_batch,
    stack,
)

log = logging.getLogger(__name__)

WARMUP = 0.05  # share of the time over which the learning rate rises
FLOOR = 0.02  # share of the learning rate left at the end
EMA_DECAY = 0.98
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.01
IOU_WEIGHT = 0.1
REPORT_SECONDS = 1.0
SMOOTHING = 0.95  # of the loss that is reported

# What the encoder keeps for the backward pass, in bytes per token, block and channel: what enters the two norms and
# the three adapters, q, k, v and their relative scores, and the four times wider activation of the MLP; then what the
# depth branch adds. Counted with saved-tensor hooks on vit_t and vit_b.
KEPT_BYTES: dict[Precision, int] = {"float32": 58, "bfloat16": 34}
KEPT_BYTES_DEPTH: dict[Precision, int] = {"float32": 20, "bfloat16": 12}
SCORE_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
# On the CPU what is kept lies scattered, and the C library's heap grows by the holes between (measured on vit_t).
HEAP_SPREAD = 1.6
# Of the available memory; the rest is for the decoder, which needs up to as much, and for other programs.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class TrainOptions:
    """What a run is made with; `seconds` is its time budget, `learning_rate` the highest one reached.

    `batch_slices` is about how many slices a step has in all: as many whole slabs as come nearest to it.
    """

    seconds: float
    learning_rate: float
    batch_slices: int
    prompts_per_slice: int
    seed: int


@dataclass(frozen=True)
class Progress:
    """Where a run is: `fraction` of its time in 0..1, steps done, seconds so far and the smoothed loss."""

    fraction: float
    steps: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class TrainResult:
    """What a run did; `losses` has one number a step, `stopped` says that it was asked to end early."""

    steps: int
    seconds: float
    losses: tuple[float, ...]
    stopped: bool


def train(
    model: MedSA,
    cases: Sequence[TrainingCase],
    options: TrainOptions,
    *,
    clock: Callable[[], float],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Trains `model.adapters` in place until `options.seconds` have passed on `clock`, or `should_stop()`.

    `clock` is read once a step. Raises TrainingError when there are no cases or the loss stops being a
    number.
    """
    if not cases:
        raise TrainingError("no labels: there is nothing to train on")
    learner = _Learner(model, cases, options)
    started = reported = clock()
    losses: list[float] = []
    smooth, elapsed, stopped = math.nan, 0.0, False
    while elapsed < options.seconds:
        if stopped := should_stop():
            break
        losses.append(learner.step(elapsed / options.seconds))
        smooth = losses[-1] if len(losses) == 1 else SMOOTHING * smooth + (1 - SMOOTHING) * losses[-1]
        now = clock()
        elapsed = now - started
        if now - reported >= REPORT_SECONDS:
            reported = now
            on_progress(Progress(min(1.0, elapsed / options.seconds), len(losses), elapsed, smooth))
    learner.finish()
    return TrainResult(len(losses), elapsed, tuple(losses), stopped)


def learning_rate_share(fraction: float) -> float:
    """Share of the highest learning rate at `fraction` of the time: linear rise, half a cosine down."""
    if fraction < WARMUP:
        return max(FLOOR, fraction / WARMUP)
    position = min(1.0, (fraction - WARMUP) / (1.0 - WARMUP))
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * position))


def prompt_losses(logits: Tensor, predicted_iou: Tensor, targets: Tensor) -> Tensor:
    """Loss of every prompt (P,) for logits (P, m, m), predicted IoU (P,) and targets (P, m, m) in 0..1.

    Dice counts only where there is something to find; cross-entropy, with both sides of the outline weighted
    alike, also teaches to find nothing.
    """
    filled = targets.flatten(1).amax(dim=1) > 0.5
    dice = _DICE(logits.unsqueeze(1), targets.unsqueeze(1)).flatten()
    entropy = _balanced_entropy(logits, targets)
    quality = functional.mse_loss(predicted_iou, true_iou(logits, targets), reduction="none")
    return torch.where(filled, dice, torch.zeros_like(dice)) + entropy + IOU_WEIGHT * quality


def true_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU (P,) of the thresholded masks; 0 where nothing is to be found: it shall rate itself low."""
    answer, truth = (logits > 0).flatten(1), (targets > 0.5).flatten(1)
    common = (answer & truth).sum(dim=1).float()
    return common / (answer | truth).sum(dim=1).clamp(min=1)


def activation_bytes(
    spec: BaseSpec, slices: int, *, with_depth: bool, precision: Precision, on_gpu: bool
) -> int:
    """Bytes the encoder keeps for the backward pass of one step of `slices` slices; an estimate within a factor of 2.

    On the CPU attention also keeps its scores, heads x keys a token (`lib.model.attention`).
    """
    tokens = spec.grid**2
    kept = KEPT_BYTES[precision] + (KEPT_BYTES_DEPTH[precision] if with_depth else 0)
    total = spec.encoder_depth * spec.encoder_width * kept
    if not on_gpu:
        everywhere = len(spec.global_blocks)
        keys = everywhere * tokens + (spec.encoder_depth - everywhere) * spec.window_size**2
        total += spec.encoder_heads * keys * SCORE_BYTES[precision]
        total = round(HEAP_SPREAD * total)
    return slices * tokens * total


def needs_checkpointing(activations: int, available: int | None) -> bool:
    """Whether so many bytes are too many of those available; not where it's unknown how many those are (None)."""
    return available is not None and activations > MEMORY_SHARE * available


_DICE = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)


def _balanced_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (P,), the labelled pixels weighted up by the root of how much rarer they are."""
    share = targets.flatten(1).mean(dim=1).clamp(min=1e-3).view(-1, 1, 1)
    weights = 1.0 + targets * (((1.0 - share) / share).sqrt() - 1.0).clamp(min=0.0)
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weights * losses).flatten(1).sum(dim=1) / weights.flatten(1).sum(dim=1)


class _Learner:
    """Optimizer, average and randomness of one run."""

    def __init__(self, model: MedSA, cases: Sequence[TrainingCase], options: TrainOptions) -> None:
        self.model, self.cases, self.options = model, cases, options
        self.device = next(model.adapters.parameters()).device
        self.bfloat16 = model.precision == "bfloat16"
        self.rng = np.random.default_rng(options.seed)
        self.augment = Augmentation(options.seed)
        self.parameters = [parameter for parameter in model.adapters.parameters() if parameter.requires_grad]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=WEIGHT_DECAY)
        self.steps = 0
        # From here on the label tokens count; they are among what is trained.
        model.trained = True
        model.train()
        self._save_memory()

    def step(self, fraction: float) -> float:
        """One update at `fraction` of the time; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * learning_rate_share(fraction)
        batch = draw_batch(
            self.cases,
            self.options.batch_slices,
            self.options.prompts_per_slice,
            self.augment,
            self.rng,
            self.model.slab,
        )
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        if not torch.isfinite(loss + norm):
            raise TrainingError(
                f"the loss became {loss.item()} at step {self.steps + 1}; nothing is published"
            )
        self.optimizer.step()
        self._update_average()
        return loss.item()

    def finish(self) -> None:
        """Puts the averaged weights into the model."""
        self.model.eval()
        if self.steps == 0:
            return
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)

    def _save_memory(self) -> None:
        """Has the encoder compute its activations twice where keeping them would take most of the memory."""
        model = self.model
        needed = activation_bytes(
            model.spec,
            max(self.options.batch_slices, model.slab),
            with_depth=model.slab > 1,
            precision=model.precision,
            on_gpu=self.device.type == "cuda",
        )
        available = available_bytes(self.device)
        model.checkpointing = needs_checkpointing(needed, available)
        if model.checkpointing and available is not None:
            log.info(
                "memory is short for training (%.1f GB of activations, %.1f GB available): they are computed twice",
                needed / 1e9,
                available / 1e9,
            )

    def _loss(self, batch: Batch) -> Tensor:
        targets = batch.targets.to(self.device)
        embeddings = self.model.encode(batch.planes.to(self.device), batch.depths)
        first, logits = self._answer(embeddings, targets, batch.prompts, batch.owners)
        prompts, owners = corrective_prompts(batch, logits.detach(), self.rng)
        if not prompts:
            return first.mean()
        second, _ = self._answer(embeddings, targets, prompts, owners)
        return torch.cat([first, second]).mean()

    def _answer(
        self, embeddings: Tensor, targets: Tensor, prompts: Sequence[SinglePrompt], owners: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Losses (P,) and logits (P, m, m) of the answers to `prompts`."""
        index = torch.tensor(owners, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            masks = self.model.decode(embeddings[index], stack(prompts, self.device))
        logits, iou = masks.logits[:, 0].float(), masks.iou[:, 0].float()
        return prompt_losses(logits, iou, targets[index]), logits

    def _update_average(self) -> None:
        self.steps += 1
        # A short run must not be averaged with its own untrained start.
        decay = min(EMA_DECAY, self.steps / (self.steps + 9.0))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1.0 - decay)
