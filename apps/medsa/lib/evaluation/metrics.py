"""Agreement of two masks, computed by MONAI on whole volumes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from torch import Tensor

from lib.errors import InputError


def volume_dice(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Dice of two masks of one shape over all their voxels at once; 1.0 when both are empty."""
    value = compute_dice(_batched(prediction), _batched(_matching(truth, prediction)), ignore_empty=False)
    return float(value)


def surface_dice(
    prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """The share of both surfaces that lies within `tolerance_mm` of the other one (normalised surface Dice).

    1.0 when both masks are empty, 0.0 when one is.
    """
    _matching(truth, prediction)
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    value = compute_surface_dice(
        _batched(prediction),
        _batched(truth),
        class_thresholds=[tolerance_mm],
        include_background=True,
        spacing=[float(spacing) for spacing in spacing_mm],
    )
    return float(value)


def _batched(mask: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=bool))[None, None].float()


def _matching(truth: NDArray[Any], prediction: NDArray[Any]) -> NDArray[Any]:
    # MONAI broadcasts some shapes, which would compare a mask with something else.
    if truth.shape != prediction.shape:
        raise InputError("prediction", prediction.shape, f"the truth's shape {truth.shape}")
    return truth
