"""The losses of pretraining."""

import pytest
import torch

from lib.model.decoder import BOX_START, NEGATIVE, PADDING, POSITIVE
from lib.model.medsa import Masks
from lib.pretraining.losses import click_loss, hard_dice, hard_iou, mask_loss, round_loss

MASK, SIZE = 16, 64


def target() -> torch.Tensor:
    truth = torch.zeros(1, MASK, MASK)
    truth[:, 4:12, 4:12] = 1
    return truth


def logits_of(mask: torch.Tensor, certainty: float = 8.0) -> torch.Tensor:
    return certainty * (2 * mask - 1)


@pytest.mark.parametrize("plain", [0.0, 0.5, 1.0])
def test_a_better_mask_costs_less(plain: float) -> None:
    truth = target().unsqueeze(1)
    half = truth.clone()
    half[..., :8] = 0
    perfect, worse, wrong = (
        mask_loss(logits_of(mask), truth, plain).item() for mask in (truth, half, 1 - truth)
    )
    assert perfect < 0.05 < worse < wrong


def test_balanced_the_object_counts_as_much_as_the_rest() -> None:
    truth = torch.zeros(1, 1, MASK, MASK)
    truth[..., 0, 0] = 1
    missed = logits_of(torch.zeros_like(truth))
    # One pixel of 256: plain, it hardly counts; balanced, it counts for half.
    assert mask_loss(missed, truth, 0.0) - mask_loss(missed, truth, 1.0) > 1


def test_only_clicks_count_at_their_places() -> None:
    logits = logits_of(target())
    points = torch.tensor([[[31.5, 31.5], [3.5, 3.5], [60.0, 60.0], [0.0, 0.0]]])
    obeyed = torch.tensor([[POSITIVE, NEGATIVE, BOX_START, PADDING]])
    refused = torch.tensor([[NEGATIVE, POSITIVE, BOX_START, PADDING]])
    assert click_loss(logits, points, obeyed, SIZE) < 0.01
    assert click_loss(logits, points, refused, SIZE) == pytest.approx(8.0, abs=0.01)
    assert click_loss(logits, points, torch.full((1, 4), PADDING), SIZE) == 0


def test_iou_and_dice_of_hard_masks() -> None:
    half = target()
    half[:, :, :8] = 0
    assert hard_iou(logits_of(half), target()).item() == 0.5
    assert hard_dice(logits_of(half), target()).item() == pytest.approx(2 / 3)
    assert hard_iou(torch.full((1, 2, 2), -1.0), torch.zeros(1, 2, 2)).item() == 0


def _answer(masks: list[torch.Tensor], iou: list[float]) -> Masks:
    return Masks(logits_of(torch.stack(masks, dim=1)).requires_grad_(), torch.tensor([iou]).requires_grad_())


def test_an_ambiguous_prompt_is_judged_by_its_best_guess() -> None:
    right, wrong = target(), 1 - target()
    points = (torch.tensor([[[31.5, 31.5]]]), torch.tensor([[POSITIVE]]))
    answer = _answer([right, wrong, right, wrong], [1.0, 0.0, 1.0, 0.0])
    loss = round_loss(answer, target(), torch.tensor([True]), points, SIZE, 1.0)
    assert loss < 0.1
    loss.backward()
    # The gradient reaches entry 0 and the best of the guesses, and no other one.
    reached = answer.logits.grad.abs().amax((0, 2, 3)) > 0
    assert reached.tolist() == [True, False, True, False]


def test_a_clear_prompt_is_judged_by_entry_0_alone() -> None:
    right, wrong = target(), 1 - target()
    points = (torch.tensor([[[31.5, 31.5]]]), torch.tensor([[POSITIVE]]))
    good = _answer([right, wrong, wrong, wrong], [1.0, 0.3, 0.3, 0.3])
    bad = _answer([wrong, right, right, right], [0.0, 1.0, 1.0, 1.0])
    clear = torch.tensor([False])
    assert round_loss(good, target(), clear, points, SIZE, 1.0) < 0.1
    assert round_loss(bad, target(), clear, points, SIZE, 1.0) > 1


def test_a_wrong_quality_costs() -> None:
    points = (torch.tensor([[[31.5, 31.5]]]), torch.tensor([[POSITIVE]]))
    honest, boasting = (
        round_loss(
            _answer([1 - target()] * 4, [quality] * 4), target(), torch.tensor([False]), points, SIZE, 1.0
        )
        for quality in (0.0, 1.0)
    )
    assert float(boasting - honest) == pytest.approx(1.0, abs=1e-4)
