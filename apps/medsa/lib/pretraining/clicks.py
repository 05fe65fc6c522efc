"""Prompts as an annotator would give them on one slice: first ones from the truth, then clicks on the largest error.

Masks are (m, m), rows then columns, at the resolution of the mask decoder; `factor` is the number of model pixels to
one of theirs, along a side. Points are (x, y) in model pixels, a pixel's centre being whole.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lib.model.decoder import NEGATIVE, PADDING, POSITIVE
from lib.pretraining.scenes import MaskArray
from lib.prompts.simulate import interior_depth

_BOX_JITTER = 0.08  # standard deviation of an edge, as a share of the box's side


def inner_point(rng: np.random.Generator, mask: MaskArray, factor: int) -> tuple[float, float]:
    """A point of the mask: its most interior one, somewhere deep inside, or anywhere."""
    depth = interior_depth(mask)
    kind = rng.random()
    if kind < 0.3:
        least = depth.max()
    elif kind < 0.75:
        least = depth.max() * rng.uniform(0.2, 1.0)
    else:
        least = 0.5
    rows, columns = np.nonzero(depth >= least)
    chosen = rng.integers(len(rows))
    place = np.array([columns[chosen], rows[chosen]]) + rng.random(2)  # anywhere within the mask's pixel
    x, y = place * factor - 0.5
    return float(x), float(y)


def rough_box(rng: np.random.Generator, mask: MaskArray, factor: int) -> NDArray[np.float32]:
    """A box (2, 2) as (x, y) of two corners, each edge off the mask's bounds by up to a fifth of the side."""
    rows, columns = np.nonzero(mask)
    start = np.array([columns.min(), rows.min()], dtype=np.float32)
    stop = np.array([columns.max() + 1, rows.max() + 1], dtype=np.float32)
    moved = np.clip(rng.normal(0, _BOX_JITTER, (2, 2)), -0.2, 0.2) * (stop - start)
    return ((np.stack([start, stop]) + moved) * factor - 0.5).astype(np.float32)


@torch.no_grad()
def correct(
    logits: Tensor, targets: Tensor, factor: int, careless: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A click on an error of each prediction (P, m, m): points (P, 1, 2), labels (P, 1), PADDING where all is right.

    It goes where the error reaches deepest, with the share `careless` of the prompts anywhere in an error.
    """
    true, found = targets >= 0.5, logits > 0
    errors = torch.stack([true & ~found, found & ~true], dim=1).float()
    noise = torch.rand(errors.shape, generator=generator).to(errors.device)
    depth = erosion_depth(errors)
    anywhere = (torch.rand(len(errors), generator=generator) < careless).to(errors.device)
    score = torch.where(anywhere.view(-1, 1, 1, 1), errors, depth) + noise * 0.9 * errors
    best = score.flatten(1).argmax(dim=1)
    size = targets.shape[-1]
    kind, row, column = best // size**2, best % size**2 // size, best % size
    labels = torch.where(kind == 0, POSITIVE, NEGATIVE)
    labels = torch.where(errors.flatten(1).any(dim=1), labels, PADDING)
    points = (torch.stack([column, row], dim=1) + 0.5) * factor - 0.5
    points = torch.where((labels == PADDING).unsqueeze(1), torch.zeros_like(points), points)
    return points.unsqueeze(1), labels.unsqueeze(1)


def erosion_depth(masks: Tensor) -> Tensor:
    """Masks (P, n, m, m) of 0 and 1 -> how many erosions by turns of 4 and 8 neighbours each pixel survives, plus one.

    An octagon's distance, nearly the Euclidean one, and for a whole batch at once; beyond the array is outside.
    """
    depth, left, turn = masks.clone(), masks, 0
    while True:
        padded = 1 - functional.pad(left, (1, 1, 1, 1))
        if turn % 2:
            grown = functional.max_pool2d(padded, 3, stride=1)
        else:
            across = functional.max_pool2d(padded[:, :, 1:-1], (1, 3), stride=1)
            grown = torch.maximum(across, functional.max_pool2d(padded[..., 1:-1], (3, 1), stride=1))
        left, turn = 1 - grown, turn + 1
        if not left.any():
            return depth
        depth += left
