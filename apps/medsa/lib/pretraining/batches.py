"""Batches for pretraining: made planes, objects in them and the first prompt for each.

A batch depends on nothing but the seed and its number, so a run that was stopped goes on with the same data.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from lib.model.decoder import BOX_START, BOX_STOP, NEGATIVE, PADDING, POSITIVE
from lib.pretraining.shapes import draw_plane, smooth_fields

POINT, BOX, CARRIED = 0, 1, 2  # the kinds of first prompt
_KIND_SHARES = (0.5, 0.25, 0.25)
MASK_LOGIT = 8.0  # a mask prompt's certain pixels, in logits


@dataclass(frozen=True)
class Batch:
    """B images with K objects each, P = B * K prompts.

    images (B, 1, S, S) 0 to 255; targets (P, m, m), the share of each mask pixel that is object; owners (P,), the
    image of each prompt; kinds (P,); points_xy (P, 2, 2) and point_labels (P, 2): a click and padding, or a box's
    corners; masks (P, 1, m, m) logits, used where the kind is CARRIED.
    """

    images: Tensor
    targets: Tensor
    owners: Tensor
    kinds: Tensor
    points_xy: Tensor
    point_labels: Tensor
    masks: Tensor


class SyntheticBatches(Dataset):
    """Batch number `index` of the run with this seed."""

    def __init__(self, seed: int, length: int, size: int, mask_size: int, images: int, objects: int) -> None:
        self.seed, self.length, self.size, self.mask_size = seed, length, size, mask_size
        self.images, self.objects = images, objects

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        planes = [draw_plane(rng, self.size, self.objects) for _ in range(self.images)]
        images = torch.from_numpy(np.stack([plane.image for plane in planes]))[:, None]
        full = torch.from_numpy(np.concatenate([plane.targets for plane in planes])).float()
        factor = self.size // self.mask_size
        targets = functional.avg_pool2d(full[:, None], factor)[:, 0]
        kinds = rng.choice(3, size=len(targets), p=_KIND_SHARES)
        prompts = [
            _first_prompt(rng, int(kind), mask, low, factor)
            for kind, mask, low in zip(kinds, full.numpy() > 0, targets.numpy(), strict=True)
        ]
        owners = torch.arange(self.images).repeat_interleave(self.objects)
        points, labels, masks = (torch.from_numpy(np.stack(column)) for column in zip(*prompts, strict=True))
        return Batch(images, targets, owners, torch.from_numpy(kinds), points, labels.long(), masks[:, None])


def _first_prompt(
    rng: np.random.Generator, kind: int, mask: np.ndarray, low: np.ndarray, factor: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (2, 2), labels (2,) and mask logits (m, m) of one prompt of the given kind."""
    blank = np.zeros_like(low)
    if kind == BOX:
        return _jittered_box(rng, mask), np.array([BOX_START, BOX_STOP]), blank
    if kind == POINT:
        point = _inner_point(rng, mask)
        return np.array([point, (0, 0)], dtype=np.float32), np.array([POSITIVE, PADDING]), blank
    neighbour = perturbed(rng, low)
    depth = ndimage.distance_transform_edt(np.pad(neighbour > 0.5, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    point = ((column + 0.5) * factor - 0.5, (row + 0.5) * factor - 0.5)
    logits = (MASK_LOGIT * (2 * neighbour - 1)).astype(np.float32)
    return np.array([point, (0, 0)], dtype=np.float32), np.array([POSITIVE, PADDING]), logits


def _inner_point(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """A pixel (x, y) inside the mask: anywhere, or deeper inside as people click."""
    rows, columns = np.nonzero(mask)
    if rng.random() < 0.75:
        top, left = rows.min(), columns.min()
        part = np.pad(mask[top : rows.max() + 1, left : columns.max() + 1], 1)
        depth = ndimage.distance_transform_edt(part)[1:-1, 1:-1]
        inner_rows, inner_columns = np.nonzero(depth >= depth.max() * rng.uniform(0.2, 1.0))
        rows, columns = inner_rows + top, inner_columns + left
    chosen = rng.integers(len(rows))
    return float(columns[chosen]), float(rows[chosen])


def _jittered_box(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box (2, 2) as (x, y) of two corners, each side moved by up to a fifth of its length."""
    rows, columns = np.nonzero(mask)
    start = np.array([columns.min(), rows.min()], dtype=np.float32)
    stop = np.array([columns.max() + 1, rows.max() + 1], dtype=np.float32)
    moved = np.clip(rng.normal(0, 0.08, (2, 2)), -0.2, 0.2) * (stop - start)
    return (np.stack([start, stop]) + moved - 0.5).astype(np.float32)


def perturbed(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """What the same object may look like one slice away: grown or shrunk, bent and moved; (m, m), 0 or 1."""
    inside = np.pad(mask > 0.5, 1)
    if not inside.any():
        return (mask > 0).astype(np.float32)
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    bend = smooth_fields(rng, 1, mask.shape[0], 6)[0] * rng.uniform(0, 1.5)
    shift = np.rint(rng.normal(0, 0.8, 2)).astype(int)
    moved = np.roll(distance[1:-1, 1:-1], shift, axis=(0, 1)) + bend + rng.normal(0, 1.0)
    if not (moved > 0).any():
        moved = distance[1:-1, 1:-1]
    return (moved > 0).astype(np.float32)


def correct(logits: Tensor, targets: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A click on the largest error of each prediction (P, m, m): points (P, 1, 2), labels (P, 1)."""
    wrong_out = ((logits > 0) & (targets < 0.5)).cpu().numpy()
    wrong_in = ((logits <= 0) & (targets >= 0.5)).cpu().numpy()
    clicks = [_deepest(missed, extra, factor) for missed, extra in zip(wrong_in, wrong_out, strict=True)]
    points, labels = zip(*clicks, strict=True)
    return torch.tensor(points).unsqueeze(1), torch.tensor(labels).unsqueeze(1)


def _deepest(missed: np.ndarray, extra: np.ndarray, factor: int) -> tuple[tuple[float, float], int]:
    """Where the error reaches deepest; padding when there is none."""
    depth_missed, depth_extra = (
        ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1] if part.any() else np.zeros(part.shape)
        for part in (missed, extra)
    )
    positive = depth_missed.max() >= depth_extra.max()
    depth = depth_missed if positive else depth_extra
    if depth.max() == 0:
        return (0.0, 0.0), PADDING
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return ((column + 0.5) * factor - 0.5, (row + 0.5) * factor - 0.5), POSITIVE if positive else NEGATIVE
