"""What a prompt's answer costs in training: Dice and focal loss of the mask, and the error of the predicted IoU.

Sources: Lin et al., *Focal Loss for Dense Object Detection*, arXiv 1708.02002; Milletari et al., *V-Net*, arXiv
1606.04797; the sum of the two and the quality head after Kirillov et al., arXiv 2304.02643.
"""

import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss
from torch import Tensor
from torch.nn import functional

FOCAL_WEIGHT = 5.0  # a mean over all pixels, of which nearly all are easy
IOU_WEIGHT = 0.1

_DICE = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
_FOCAL = FocalLoss(gamma=2.0, reduction="none")


def prompt_losses(logits: Tensor, predicted_iou: Tensor, targets: Tensor) -> Tensor:
    """Loss of every prompt (P,) for logits (P, m, m), predicted IoU (P,) and targets (P, m, m) in 0..1.

    Dice counts only where there is something to find; the focal loss also teaches to find nothing.
    """
    filled = targets.flatten(1).amax(dim=1) > 0.5
    dice = _DICE(logits.unsqueeze(1), targets.unsqueeze(1)).flatten()
    quality = functional.mse_loss(predicted_iou, true_iou(logits, targets), reduction="none")
    focal = FOCAL_WEIGHT * _FOCAL(logits.unsqueeze(1), targets.unsqueeze(1)).flatten(1).mean(dim=1)
    return torch.where(filled, dice, torch.zeros_like(dice)) + focal + IOU_WEIGHT * quality


def true_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU (P,) of the thresholded masks; 0 where nothing is to be found: it shall rate itself low."""
    answer, truth = (logits > 0).flatten(1), (targets > 0.5).flatten(1)
    common = (answer & truth).sum(dim=1).float()
    return common / (answer | truth).sum(dim=1).clamp(min=1)
