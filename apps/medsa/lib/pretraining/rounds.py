"""The conversation that pretraining simulates: a first prompt, then corrective clicks on the model's own errors."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.model.medsa import Masks, MedSA, PlanePrompts
from lib.model.precision import has_fast_bfloat16
from lib.pretraining.batches import BOX, CARRIED, POINT, Batch
from lib.pretraining.clicks import correct
from lib.pretraining.losses import hard_dice, round_loss

_CARELESS = 0.25  # share of the corrections that go anywhere in an error instead of its middle
_SEES_LAST_ANSWER = 0.65  # share of the prompts for which a round gets the last answer as a mask prompt
_LOGIT_LIMIT = 20.0


@dataclass(frozen=True)
class Conversation:
    """How one batch is talked about: `rounds` in all, of which those in `learned` give gradients."""

    rounds: int
    learned: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int, step: int, shares: Sequence[float]) -> "Conversation":
        """For a step: `shares` are the likelihoods of 1, 2, ... rounds. The first and the last are learned from."""
        rounds = random.Random(f"{seed}/{step}").choices(range(1, len(shares) + 1), shares)[0]
        return cls(rounds, tuple({0, rounds - 1}))


class Dialogue:
    """The state of a conversation about one batch: points so far, the last answer, what is wrong with it."""

    def __init__(self, batch: Batch, size: int, generator: torch.Generator, device: str) -> None:
        self.size, self.generator, self.device = size, generator, device
        self.targets, self.kinds = batch.targets.to(device), batch.kinds.to(device)
        self.points, self.labels = batch.points_xy.to(device), batch.point_labels.to(device)
        self.masks, self.has_mask = batch.masks.to(device), self.kinds == CARRIED
        self.turn = 0

    @property
    def prompts(self) -> PlanePrompts:
        return PlanePrompts(self.points, self.labels, self.masks, self.has_mask)

    @property
    def ambiguous(self) -> Tensor:
        """(P,): a lone click may mean a part or the whole."""
        return (self.kinds == POINT) & (self.turn == 0)

    def take(self, answer: Masks) -> Tensor:
        """Looks at an answer and places the next clicks; the Dice (P,) of what was answered."""
        detached = Masks(answer.logits.detach().float(), answer.iou.detach().float())
        chosen, _ = detached.choose(self.ambiguous)
        clicks, signs = correct(
            chosen, self.targets, self.size // chosen.shape[-1], _CARELESS, self.generator
        )
        self._append(clicks, signs)
        self.masks = chosen.unsqueeze(1).clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)
        self.has_mask = (torch.rand(len(chosen), generator=self.generator) < _SEES_LAST_ANSWER).to(
            self.device
        )
        self.turn += 1
        return hard_dice(chosen, self.targets)

    def _append(self, clicks: Tensor, signs: Tensor) -> None:
        """SAM's padding token stays last where there is no box, as it is when serving."""
        if self.turn:
            self.points = torch.cat([self.points[:, :-1], clicks, self.points[:, -1:]], dim=1)
            self.labels = torch.cat([self.labels[:, :-1], signs, self.labels[:, -1:]], dim=1)
            return
        boxed = (self.kinds == BOX).view(-1, 1)
        # points hold (click, padding) or (corner, corner): the click goes before the padding, or before the box.
        first, second = self.points[:, :1], self.points[:, 1:]
        place = boxed.unsqueeze(-1)
        self.points = torch.cat(
            [torch.where(place, clicks, first), torch.where(place, first, clicks), second], dim=1
        )
        first, second = self.labels[:, :1], self.labels[:, 1:]
        self.labels = torch.cat(
            [torch.where(boxed, signs, first), torch.where(boxed, first, signs), second], dim=1
        )


def talk(
    model: MedSA, batch: Batch, plan: Conversation, plain: float, generator: torch.Generator, device: str
) -> tuple[Tensor, tuple[float, ...]]:
    """The loss of one batch over the rounds of `plan`, and the mean Dice after each round."""
    kind, rounded = torch.device(device).type, has_fast_bfloat16(torch.device(device))
    dialogue = Dialogue(batch, model.spec.image_size, generator, device)
    owners = batch.owners.to(device)
    total, dices = torch.zeros((), device=device), []
    with torch.autocast(kind, torch.bfloat16, enabled=rounded):
        embeddings = model.encode(batch.images.to(device).expand(-1, 3, -1, -1))[owners]
    for turn in range(plan.rounds):
        with (
            torch.autocast(kind, torch.bfloat16, enabled=rounded),
            torch.set_grad_enabled(turn in plan.learned),
        ):
            answer = model.decode(embeddings, dialogue.prompts)
        if turn in plan.learned:
            points = (dialogue.points, dialogue.labels)
            total = total + round_loss(
                answer, dialogue.targets, dialogue.ambiguous, points, model.spec.image_size, plain
            )
        dices.append(float(dialogue.take(answer).mean()))
    return total / len(plan.learned), tuple(dices)
