"""Pretraining of a small base model on made images: resumable, seeded.

Learning rate: warm-up, constant, then linear decay over the last part of the run; the make-up of the loss changes over
the same last part. So the length of a run need not be planned: until its decay begins it may be prolonged or cut.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from lib.memory import keep_freed_memory
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import MedSA, PlanePrompts
from lib.pretraining.batches import BOX, CARRIED, POINT, Batch, SyntheticBatches, correct

_QUALITY_WEIGHT = 0.5
_BALANCED_WEIGHT = 0.3


@dataclass(frozen=True)
class PretrainConfig:
    """A whole recipe; the same recipe and seed give the same data in the same order."""

    steps: int = 2300
    decay_steps: int = 1000
    warmup_steps: int = 150
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    images: int = 8
    objects: int = 4
    rounds: int = 3
    ema_decay: float = 0.998
    seed: int = 0
    checkpoint_seconds: float = 120.0
    workers: int = 1


@dataclass(frozen=True)
class Progress:
    """Means over the steps since the last report; Dice at mask resolution, by round (1 first prompt, 2.. clicks)."""

    step: int
    loss: float
    dice_by_round: tuple[float, ...]
    seconds: float


def pretrain(
    spec: BaseSpec,
    config: PretrainConfig,
    folder: Path,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Trains, or goes on from `folder`/checkpoint.pt; writes and returns `folder`/<name>.safetensors (float16)."""
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = MedSA(build_sam(spec), spec, None).to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    optimizer = torch.optim.AdamW(
        _groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98)
    )
    state = _State(model, average, optimizer, folder / "checkpoint.pt")
    first = state.restore()
    saved = started = time.monotonic()
    window: list[tuple[float, tuple[float, ...]]] = []
    for step, batch in zip(range(first, config.steps), _batches(spec, config, first), strict=False):
        _set_rate(optimizer, config, step)
        loss, dice = _losses(model, batch, spec, step, config, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        window.append((loss.item(), dice))
        if (step + 1) % 20 == 0:
            report(_progress(step + 1, window, time.monotonic() - started))
            window.clear()
        if time.monotonic() - saved > config.checkpoint_seconds:
            state.save(step + 1)
            export(cast(MedSA, average.module), spec, folder)
            saved = time.monotonic()
    state.save(config.steps)
    return export(cast(MedSA, average.module), spec, folder)


def export(model: MedSA, spec: BaseSpec, folder: Path) -> Path:
    """Writes the base's tensors as float16, whole or not at all."""
    path = folder / f"{spec.name}.safetensors"
    partial = path.with_suffix(".tmp")
    tensors = {key: value.detach().to("cpu", torch.float16) for key, value in model.sam.state_dict().items()}
    save_file(tensors, partial, metadata={"spec": json.dumps(dataclasses.asdict(spec))})
    os.replace(partial, path)
    return path


class _State:
    """What a stopped run needs to go on."""

    def __init__(
        self, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, path: Path
    ) -> None:
        self.parts: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer}
        self.path = path

    def restore(self) -> int:
        """The step to go on with; 0 when there is nothing to go on from."""
        if not self.path.is_file():
            return 0
        stored = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(stored[name])
        return int(stored["step"])

    def save(self, step: int) -> None:
        partial = self.path.with_suffix(".tmp")
        torch.save({"step": step, **{name: part.state_dict() for name, part in self.parts.items()}}, partial)
        os.replace(partial, self.path)


def _batches(spec: BaseSpec, config: PretrainConfig, first: int) -> Iterator[Batch]:
    data = SyntheticBatches(
        config.seed, config.steps, spec.image_size, spec.mask_size, config.images, config.objects
    )
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=range(first, config.steps),
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases, norms and tokens don't."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _set_rate(optimizer: torch.optim.Optimizer, config: PretrainConfig, step: int) -> None:
    rise = min(1.0, (step + 1) / config.warmup_steps)
    fall = 1 - _decayed(config, step)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * min(rise, fall)


def _decayed(config: PretrainConfig, step: int) -> float:
    """Share of the decay that is over, 0 before it begins."""
    return max(0.0, 1 - (config.steps - step) / config.decay_steps)


def _losses(
    model: MedSA, batch: Batch, spec: BaseSpec, step: int, config: PretrainConfig, device: str
) -> tuple[Tensor, tuple[float, ...]]:
    """The loss of one batch over one to `rounds` rounds of clicks, and the mean Dice after each round."""
    targets, owners = batch.targets.to(device), batch.owners.to(device)
    kinds = batch.kinds.to(device)
    points, labels = batch.points_xy, batch.point_labels
    masks, has_mask = batch.masks.to(device), kinds == CARRIED
    total, dices = torch.zeros((), device=device), []
    with torch.autocast(device.split(":")[0], torch.bfloat16):
        embeddings = model.encode(batch.images.to(device).expand(-1, 3, -1, -1))[owners]
    for turn in range(1 + step % config.rounds):
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            prompts = PlanePrompts(points.to(device), labels.to(device), masks, has_mask)
            answer = model.decode(embeddings, prompts)
        logits, iou = answer.logits.float(), answer.iou.float()
        ambiguous = (kinds == POINT) & (turn == 0)
        total = total + _round_loss(logits, iou, targets, ambiguous, _decayed(config, step))
        chosen, _ = type(answer)(logits, iou).choose(ambiguous)
        chosen = chosen.detach()
        dices.append(_hard_dice(chosen, targets).mean().item())
        points, labels = _with_correction(points, labels, kinds, chosen, targets, turn, spec)
        # Half of the time the next round sees the last answer, half of the time only the clicks.
        keep = torch.rand(len(kinds)).to(device) < 0.5
        masks, has_mask = chosen.unsqueeze(1).clamp(-20, 20), keep
    return total, tuple(dices)


def _with_correction(
    points: Tensor, labels: Tensor, kinds: Tensor, chosen: Tensor, targets: Tensor, turn: int, spec: BaseSpec
) -> tuple[Tensor, Tensor]:
    """One more click a prompt. SAM's padding token stays last where there is no box."""
    clicks, signs = correct(chosen, targets, spec.image_size // spec.mask_size)
    boxed = (kinds == BOX).cpu().view(-1, 1)
    padding = torch.where(boxed.unsqueeze(-1), clicks, torch.zeros_like(clicks))
    if turn == 0:
        # points hold (click, padding) or (corner, corner): the click goes before the padding, after the corners.
        second = torch.where(boxed.unsqueeze(-1), points[:, 1:2], clicks)
        second_sign = torch.where(boxed, labels[:, 1:2], signs)
        last_sign = torch.where(boxed, signs, torch.full_like(signs, -1))
        return (
            torch.cat([points[:, :1], second, padding], dim=1),
            torch.cat([labels[:, :1], second_sign, last_sign], dim=1),
        )
    return torch.cat([points, clicks], dim=1), torch.cat([labels, signs], dim=1)


def _round_loss(logits: Tensor, iou: Tensor, targets: Tensor, ambiguous: Tensor, done: float) -> Tensor:
    """logits (P, 4, m, m), iou (P, 4), targets (P, m, m); `done` is the share of the decay that is over."""
    every = _mask_loss(logits, targets.unsqueeze(1).expand_as(logits), done)
    loss = every[:, 0].mean()
    if ambiguous.any():
        loss = loss + every[ambiguous, 1:].amin(dim=1).mean()
    true_iou = _hard_iou(logits.detach(), targets.unsqueeze(1))
    quality = functional.mse_loss(iou, true_iou, reduction="none")
    used = torch.ones_like(quality)
    used[~ambiguous, 1:] = 0
    return loss + _QUALITY_WEIGHT * (quality * used).sum() / used.sum()


def _mask_loss(logits: Tensor, targets: Tensor, done: float) -> Tensor:
    """Dice plus cross-entropy, (P, 4).

    The cross-entropy is balanced between object and rest, without which training does not take off, and becomes plain
    during the decay, so that the border is neither pushed out nor in.
    """
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + targets.sum((-2, -1)) + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    inside = (entropy * targets).sum((-2, -1)) / (targets.sum((-2, -1)) + 1)
    outside = (entropy * (1 - targets)).sum((-2, -1)) / ((1 - targets).sum((-2, -1)) + 1)
    balanced = _BALANCED_WEIGHT * (inside + outside)
    return dice + (1 - done) * balanced + done * 2 * entropy.mean((-2, -1))


def _hard_iou(logits: Tensor, targets: Tensor) -> Tensor:
    predicted, true = logits > 0, targets >= 0.5
    union = (predicted | true).sum((-2, -1))
    return (predicted & true).sum((-2, -1)) / union.clamp(min=1)


def _hard_dice(logits: Tensor, targets: Tensor) -> Tensor:
    iou = _hard_iou(logits, targets)
    return 2 * iou / (1 + iou)


def _progress(step: int, window: list[tuple[float, tuple[float, ...]]], seconds: float) -> Progress:
    rounds = max(len(dice) for _, dice in window)
    by_round = [
        sum(dice[turn] for _, dice in window if len(dice) > turn)
        / sum(len(dice) > turn for _, dice in window)
        for turn in range(rounds)
    ]
    return Progress(step, sum(loss for loss, _ in window) / len(window), tuple(by_round), seconds)
