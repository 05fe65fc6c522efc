"""What pretraining minimises: masks that fit, clicks that are obeyed, a quality estimate that is true.

P prompts, four masks each (entry 0 answers a clear prompt, 1 to 3 an ambiguous one), m x m pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from lib.model.decoder import NEGATIVE, POSITIVE
from lib.model.medsa import Masks

_QUALITY_WEIGHT, _BALANCED_WEIGHT, _PLAIN_WEIGHT, _CLICK_WEIGHT = 1.0, 0.3, 2.0, 0.5


def round_loss(
    answer: Masks, targets: Tensor, ambiguous: Tensor, points: tuple[Tensor, Tensor], size: int, plain: float
) -> Tensor:
    """The loss of one round, a scalar.

    `targets` (P, m, m) are shares of a pixel, `ambiguous` (P,) the lone clicks, `points` the prompts' places (P, N, 2)
    in model pixels of an image `size` wide, and labels (P, N). `plain` is the share of plain cross-entropy; the rest
    is balanced. An ambiguous prompt is judged by the best of its three masks, as in SAM (Kirillov et al.,
    arXiv 2304.02643).
    """
    truth = targets.unsqueeze(1)
    first = answer.logits[:, :1].float()
    loss = mask_loss(first, truth, plain).mean() + _CLICK_WEIGHT * click_loss(first[:, 0], *points, size)
    errors = [quality_error(answer.iou[:, :1], first, truth)]
    if ambiguous.any():
        guesses = answer.logits[ambiguous, 1:].float()
        loss = loss + mask_loss(guesses, truth[ambiguous], plain).amin(dim=1).mean()
        errors.append(quality_error(answer.iou[ambiguous, 1:], guesses, truth[ambiguous]))
    return loss + _QUALITY_WEIGHT * torch.cat([error.flatten() for error in errors]).mean()


def quality_error(predicted: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the predicted IoU (P, n) of masks (P, n, m, m) against targets (P, 1, m, m)."""
    return (predicted.float() - hard_iou(logits.detach(), targets)) ** 2


def mask_loss(logits: Tensor, targets: Tensor, plain: float) -> Tensor:
    """Dice plus cross-entropy, (P, n), of logits (P, n, m, m) against targets (P, 1, m, m).

    Balanced between object and rest, without which training does not take off from random weights; plain at the end,
    so that the border is neither pushed out nor in.
    """
    targets = targets.expand_as(logits)
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((-2, -1))
    areas = targets.sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + areas + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    inside = (entropy * targets).sum((-2, -1)) / (areas + 1)
    outside = (entropy * (1 - targets)).sum((-2, -1)) / ((1 - targets).sum((-2, -1)) + 1)
    return (
        dice
        + (1 - plain) * _BALANCED_WEIGHT * (inside + outside)
        + plain * _PLAIN_WEIGHT * entropy.mean((-2, -1))
    )


def click_loss(logits: Tensor, points_xy: Tensor, labels: Tensor, size: int) -> Tensor:
    """Cross-entropy at the clicks alone, a scalar: what was clicked has to be in the mask (P, m, m), or out of it."""
    grid = (2 * (points_xy.to(logits.device) + 0.5) / size - 1).unsqueeze(1)
    at_clicks = functional.grid_sample(logits.unsqueeze(1), grid, padding_mode="border", align_corners=False)[
        :, 0, 0
    ]
    labels = labels.to(logits.device)
    clicked = (labels == POSITIVE) | (labels == NEGATIVE)
    wanted = (labels == POSITIVE).to(logits.dtype)
    entropy = functional.binary_cross_entropy_with_logits(at_clicks, wanted, reduction="none")
    return (entropy * clicked).sum() / clicked.sum().clamp(min=1)


def hard_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of the masks where both are cut at one half, (...,) of (..., m, m)."""
    predicted, true = logits > 0, targets >= 0.5
    union = (predicted | true).sum((-2, -1))
    return (predicted & true).sum((-2, -1)) / union.clamp(min=1)


def hard_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice, likewise."""
    iou = hard_iou(logits, targets)
    return 2 * iou / (1 + iou)
