"""One training in progress: network, optimizer and averaged weights, one update at a time.

Everything of SAM stays frozen. A step encodes its slices once, answers several prompts on each, then a second click
where the first answers were most wrong. What is kept is the exponential moving average of the weights.

What a step draws depends on the seed, the step's number and the worker alone, so that a run that goes on from a
checkpoint draws what it would have drawn.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.device_memory import free_memory, is_out_of_memory
from lib.errors import DivergenceError, TrainingError
from lib.memory import available_bytes
from lib.model.medsa import MedSA, SinglePrompt
from lib.training.activations import activation_bytes, needs_checkpointing
from lib.training.augmentation import Augmentation
from lib.training.losses import prompt_losses
from lib.training.optimizer import MakeOptimizer, Optimizer
from lib.training.samples import Batch, corrective_prompts, draw_batch, stack
from lib.training.slabs import TrainingCase
from lib.training.world import World

log = logging.getLogger(__name__)

EMA_DECAY = 0.98
CLIP_NORM = 1.0
ALIGN_STEPS = 100  # of several workers


@dataclass(frozen=True)
class Stage:
    """A part of a run: the network at one image size, the cases cut for that size, and how slices are drawn.

    `together`: neighbouring slices in slabs, which the depth branch sees together; else every slice by itself.
    """

    model: MedSA
    cases: Sequence[TrainingCase]
    together: bool = True

    @property
    def slab(self) -> int:
        """How many neighbouring slices are drawn and encoded together."""
        return self.model.slab if self.together else 1


@dataclass(frozen=True)
class Diet:
    """What a step is fed with: about so many slices, in whole slabs, with so many prompts each.

    `weights` say how often each case is drawn; they add up to 1. `recorded_share` is how often the prompts that an
    annotator gave are asked again where there are any.
    """

    slices: int
    prompts_per_slice: int
    weights: Sequence[float]
    recorded_share: float = 0.0


class Learner:
    """Optimizer, average and randomness of one run. `events` says in words what happened that was not planned.

    `parameters` are what is trained: the adapters, where nothing else is said.
    """

    def __init__(
        self,
        model: MedSA,
        diet: Diet,
        seed: int,
        world: World,
        parameters: Sequence[nn.Parameter] | None = None,
        make_optimizer: MakeOptimizer = Optimizer.of,
    ) -> None:
        self.model, self.diet, self.seed, self.world = model, diet, seed, world
        self.device = next(model.adapters.parameters()).device
        self.augment = Augmentation()
        self.parameters = list(model.adapters.parameters() if parameters is None else parameters)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = make_optimizer(model, self.parameters)
        self.steps = 0
        self.slices = diet.slices
        self.events: list[str] = []
        # From here on the label tokens count; they are among what is trained.
        model.trained = True

    def step(self, stage: Stage, learning_rate: float) -> float:
        """One update; returns the loss.

        Where memory runs out the step is done again with half of the slices, and so are all that follow. Raises
        TrainingError when one slice is too much, DivergenceError when the loss is no number.
        """
        if self.steps % ALIGN_STEPS == 0:
            # Unlike machines round the same update differently.
            self.world.share([parameter.detach() for parameter in self.parameters])
        loss = self._gradients(stage)
        self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        value = loss.item()
        if not torch.isfinite(loss + norm):
            raise DivergenceError(f"the loss became {value} at step {self.steps + 1}; nothing is published")
        self.optimizer.step(learning_rate)
        self._update_average()
        return value

    def finish(self) -> None:
        """Puts the averaged weights into the model."""
        self.model.eval()
        if self.steps == 0:
            return
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)

    def state(self) -> dict[str, Any]:
        """All that a run goes on from; tensors and plain values."""
        return {
            "parameters": [parameter.detach().cpu() for parameter in self.parameters],
            "average": [average.cpu() for average in self.average],
            "optimizer": self.optimizer.state(),
            "steps": self.steps,
            "slices": self.slices,
            "events": list(self.events),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`. Raises ValueError, RuntimeError or KeyError when it is of another network."""
        own = [tuple(parameter.shape) for parameter in self.parameters]
        for name in ("parameters", "average"):
            if [tuple(tensor.shape) for tensor in state[name]] != own:
                raise ValueError(f"{name} of another shape")
        self.optimizer.restore(state["optimizer"])
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.average = [average.to(self.device) for average in state["average"]]
        self.steps, self.slices = int(state["steps"]), int(state["slices"])
        self.events = [str(event) for event in state["events"]]

    def save_memory(self, stage: Stage) -> None:
        """Has the encoder compute its activations twice where keeping them would take most of the memory."""
        model = stage.model
        needed = activation_bytes(
            model.spec,
            self.slices,
            with_depth=stage.slab > 1,
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

    def _gradients(self, stage: Stage) -> Tensor:
        """The loss of this step, its gradients in the parameters."""
        while True:
            self.optimizer.zero_grad()
            try:
                loss = self._loss(stage, self._draw(stage))
                loss.backward()
                return loss.detach()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the handler: the error's traceback holds on to the tensors of the step.
            self._halve(stage)

    def _average_gradients(self) -> None:
        if self.world.size == 1:
            return
        # Slices by themselves leave the depth adapters without gradients. Where they do so on all workers these keep
        # none, so that the optimizer begins with them when there are some; where on one only, it counts as zero.
        has_any = self.world.agree_each([parameter.grad is not None for parameter in self.parameters])
        learned = [
            parameter for parameter, any_worker in zip(self.parameters, has_any, strict=True) if any_worker
        ]
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.world.average([parameter.grad for parameter in learned if parameter.grad is not None])

    def _halve(self, stage: Stage) -> None:
        self.optimizer.zero_grad()
        free_memory(self.device)
        if self.slices <= 1:
            raise TrainingError(
                "memory ran out with a single slice a step: a smaller image_size or base is needed"
            )
        before, self.slices = self.slices, self.slices // 2
        stage.model.checkpointing = True
        self.events.append(
            f"memory ran out at step {self.steps + 1}: {self.slices} slices a step instead of {before} from there on"
        )
        log.warning("%s", self.events[-1])

    def _draw(self, stage: Stage) -> Batch:
        rng = np.random.default_rng([self.seed, self.steps, self.world.rank])
        self.augment.seed(int(rng.integers(1 << 31)))
        return draw_batch(
            stage.cases,
            self.slices,
            self.diet.prompts_per_slice,
            self.augment,
            rng,
            min(stage.slab, self.slices),
            self.diet.weights,
            self.diet.recorded_share,
        )

    def _loss(self, stage: Stage, batch: Batch) -> Tensor:
        rng = np.random.default_rng([self.seed, self.steps, self.world.rank, 1])
        targets = batch.targets.to(self.device)
        embeddings = stage.model.encode(batch.planes.to(self.device), batch.depths)
        first, logits = self._answer(stage.model, embeddings, targets, batch.prompts, batch.owners)
        prompts, owners = corrective_prompts(batch, logits.detach(), rng)
        if not prompts:
            return first.mean()
        second, _ = self._answer(stage.model, embeddings, targets, prompts, owners)
        return torch.cat([first, second]).mean()

    def _answer(
        self,
        model: MedSA,
        embeddings: Tensor,
        targets: Tensor,
        prompts: Sequence[SinglePrompt],
        owners: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Losses (P,) and logits (P, m, m) of the answers to `prompts`."""
        index = torch.tensor(owners, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=model.precision == "bfloat16"):
            masks = model.decode(embeddings[index], stack(prompts, self.device))
        logits, iou = masks.logits[:, 0].float(), masks.iou[:, 0].float()
        return prompt_losses(logits, iou, targets[index]), logits

    def _update_average(self) -> None:
        self.steps += 1
        # A short run must not be averaged with its own untrained start.
        decay = min(EMA_DECAY, self.steps / (self.steps + 9.0))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1.0 - decay)
