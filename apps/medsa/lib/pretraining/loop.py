"""Pretraining of a small base model on made images: in stages of growing image size, resumable, seeded.

A stage is a size: first small images, where a step costs little, then the size that serves, with the positions of the
stage before resized. Learning rate: warm-up at the start of each stage, constant, then linear decay over the last steps
of the run; so until its decay begins the last stage may be prolonged or cut.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from lib.errors import CheckpointError
from lib.memory import keep_freed_memory
from lib.model.base import BaseSpec, build_sam, load_base, load_strictly, resize_positions
from lib.model.medsa import MedSA
from lib.pretraining.batches import Batch, SyntheticBatches
from lib.pretraining.rounds import Conversation, talk

CHECKPOINT = "checkpoint.pt"
REPORT_STEPS = 20


@dataclass(frozen=True)
class Stage:
    """`steps` steps at `image_size` pixels."""

    image_size: int
    steps: int


@dataclass(frozen=True)
class PretrainConfig:
    """A whole recipe; the same recipe and seed give the same data and clicks in the same order.

    `round_shares` are the likelihoods of conversations of 1, 2, ... prompts; `start` is a file to begin from instead of
    random weights.
    """

    stages: tuple[Stage, ...]
    decay_steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    images: int
    objects: int
    round_shares: tuple[float, ...]
    ema_decay: float
    seed: int
    checkpoint_seconds: float
    workers: int
    start: Path | None = None

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def place(self, step: int) -> tuple[int, int]:
        """Which stage `step` (of the whole run) is in, and how many of its steps came before."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        return len(self.stages) - 1, self.stages[-1].steps + step

    def rate(self, step: int) -> float:
        """The learning rate."""
        _, inside = self.place(step)
        rise = min(1.0, (inside + 1) / self.warmup_steps)
        return self.learning_rate * min(rise, (self.total_steps - step) / self.decay_steps)

    def plain(self, step: int) -> float:
        """The share of plain cross-entropy in the loss: from 0 to 1 while all stages but the last go on, then 1.

        Where there is one stage only, until the decay begins.
        """
        last = self.stages[-1].steps if len(self.stages) > 1 else self.decay_steps
        return min(1.0, step / max(1, self.total_steps - last))

    def identity(self) -> dict[str, Any]:
        """What a run cannot change on its way: all but how it is carried out, and how long its last stage is."""
        free = ("checkpoint_seconds", "workers", "decay_steps", "stages")
        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in free}
        values["start"] = str(self.start)
        sizes = [stage.image_size for stage in self.stages]
        earlier = [stage.steps for stage in self.stages[:-1]]
        return {**values, "image sizes": sizes, "steps of the stages before the last": earlier}


@dataclass(frozen=True)
class Progress:
    """Means over the steps since the last report; Dice at mask resolution, by round (1 first prompt, 2.. clicks).

    `step_seconds` is the time of one step.
    """

    step: int
    total_steps: int
    image_size: int
    loss: float
    dice_by_round: tuple[float, ...]
    learning_rate: float
    step_seconds: float


def pretrain(
    spec: BaseSpec,
    config: PretrainConfig,
    folder: Path,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Trains, or goes on from `folder`/checkpoint.pt; writes and returns `folder`/<name>.safetensors (float16).

    Raises CheckpointError when the checkpoint or the file to start from is damaged or does not fit.
    """
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run.restore_or_begin(spec, config, folder, device)
    while run.step < config.total_steps:
        if run.stage != config.place(run.step)[0]:
            run = run.next_stage()
        _train_stage(run, report)
    run.save()
    return run.export()


def _train_stage(run: "_Run", report: Callable[[Progress], None]) -> None:
    """The steps left of the run's stage."""
    window: list[tuple[float, tuple[float, ...]]] = []
    saved = reported = time.monotonic()
    for batch in _batches(run):
        window.append(run.learn(batch))
        now = time.monotonic()
        if run.step % REPORT_STEPS == 0 or run.step == run.stage_end:
            report(_progress(run, window, (now - reported) / len(window)))
            window, reported = [], now
        if now - saved > run.config.checkpoint_seconds:
            run.save()
            run.export()
            saved = time.monotonic()


class _Run:
    """The state of a run: networks, optimizer and the step it is at. Saved whole, so a stopped run goes on."""

    def __init__(
        self, spec: BaseSpec, config: PretrainConfig, folder: Path, device: str, stage: int, step: int
    ) -> None:
        self.base, self.config, self.folder, self.device = spec, config, folder, device
        self.stage, self.step = stage, step
        self.spec = dataclasses.replace(spec, image_size=config.stages[stage].image_size)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(config.seed)
            self.model = MedSA(build_sam(self.spec), self.spec, None).to(device).train()
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98), fused=True
        )

    @classmethod
    def restore_or_begin(cls, spec: BaseSpec, config: PretrainConfig, folder: Path, device: str) -> "_Run":
        path = folder / CHECKPOINT
        stored = _read_checkpoint(path)
        if stored is not None:
            _check_recipe(stored, config, path)
            run = cls(spec, config, folder, device, stored["stage"], stored["step"])
            try:
                for name, part in run._parts().items():
                    part.load_state_dict(stored[name])
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(f"{path}: is of another network ({reason})") from error
            return run
        run = cls(spec, config, folder, device, 0, 0)
        if config.start is not None:
            sam, _ = load_base(run.spec, config.start)
            for network in (run.model, run._averaged):
                load_strictly(network.sam, sam.state_dict(), str(config.start))
            run._go_on_averaging()
        return run

    @property
    def stage_end(self) -> int:
        """The step at which the stage is over."""
        return sum(stage.steps for stage in self.config.stages[: self.stage + 1])

    @property
    def _averaged(self) -> MedSA:
        return cast(MedSA, self.average.module)

    def _go_on_averaging(self) -> None:
        """The average holds something: without this its first update would replace it."""
        self.average.n_averaged.fill_(1)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def next_stage(self) -> "_Run":
        """The run at the next image size: the same weights, positions resized; the optimizer begins anew."""
        run = _Run(self.base, self.config, self.folder, self.device, self.stage + 1, self.step)
        for old, new in ((self.model, run.model), (self._averaged, run._averaged)):
            load_strictly(new.sam, resize_positions(old.sam.state_dict(), run.spec), "the stage before")
        run._go_on_averaging()
        return run

    def learn(self, batch: Batch) -> tuple[float, tuple[float, ...]]:
        """One step; the loss and the Dice by round."""
        config, step = self.config, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(step)
        plan = Conversation.draw(config.seed, step, config.round_shares)
        # Of its own for every step: a run that goes on asks what it would have asked.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        loss, dice = talk(self.model, batch, plan, config.plain(step), generator, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.item(), dice

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        partial = self.folder / f"{CHECKPOINT}.tmp"
        states = {name: part.state_dict() for name, part in self._parts().items()}
        recipe = self.config.identity()
        torch.save({"step": self.step, "stage": self.stage, "recipe": recipe, **states}, partial)
        os.replace(partial, self.folder / CHECKPOINT)

    def export(self) -> Path:
        """Writes the averaged base's tensors as float16, whole or not at all."""
        return export(
            self._averaged.sam.state_dict(), self.spec, self.folder / f"{self.spec.name}.safetensors"
        )


def export(tensors: Mapping[str, Tensor], spec: BaseSpec, path: Path) -> Path:
    """Writes a base's `tensors` as float16, whole or not at all; returns `path`."""
    partial = path.with_suffix(".tmp")
    halves = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in tensors.items()}
    save_file(halves, partial, metadata={"spec": json.dumps(dataclasses.asdict(spec))})
    os.replace(partial, path)
    return path


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read ({reason}); remove it to begin anew") from error
    if not isinstance(stored, dict) or not {"step", "stage", "recipe"} <= stored.keys():
        raise CheckpointError(f"{path}: is no checkpoint of a pretraining; remove it to begin anew")
    return stored


def _check_recipe(stored: Mapping[str, Any], config: PretrainConfig, path: Path) -> None:
    """Raises CheckpointError naming what the run in `path` was begun with and `config` has otherwise."""
    differing = [
        f"{key} {stored['recipe'].get(key)!r}, not {value!r}"
        for key, value in config.identity().items()
        if stored["recipe"].get(key) != value
    ]
    if differing:
        raise CheckpointError(
            f"{path}: was begun with {'; '.join(differing)}; go on with that, or choose another folder"
        )
    if stored["step"] > config.total_steps:
        raise CheckpointError(
            f"{path}: is at step {stored['step']}; allowed: a recipe of at least as many, not {config.total_steps}"
        )


def _batches(run: _Run) -> Iterator[Batch]:
    config, spec = run.config, run.spec
    data = SyntheticBatches(
        config.seed, config.total_steps, spec.image_size, spec.mask_size, config.images, config.objects
    )
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=range(run.step, run.stage_end),
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What has two or more axes decays: matrices, kernels, tokens, position tables; biases and norms don't."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _progress(run: _Run, window: list[tuple[float, tuple[float, ...]]], step_seconds: float) -> Progress:
    rounds = max(len(dice) for _, dice in window)
    by_round = [
        sum(dice[turn] for _, dice in window if len(dice) > turn)
        / sum(len(dice) > turn for _, dice in window)
        for turn in range(rounds)
    ]
    return Progress(
        step=run.step,
        total_steps=run.config.total_steps,
        image_size=run.spec.image_size,
        loss=sum(loss for loss, _ in window) / len(window),
        dice_by_round=tuple(by_round),
        learning_rate=run.config.rate(run.step - 1),
        step_seconds=step_seconds,
    )
