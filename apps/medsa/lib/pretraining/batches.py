"""Batches for pretraining: made slices, objects in them and the first prompt for each.

A batch depends on nothing but the seed and its number, so a run that was stopped goes on with the same data.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from lib.model.decoder import BOX_START, BOX_STOP, PADDING, POSITIVE
from lib.pretraining.appearance import draw_palette, paint
from lib.pretraining.clicks import inner_point, rough_box
from lib.pretraining.scenes import FloatArray, LabelSlice, MaskArray, Scene, connected_region, draw_scene
from lib.prompts.simulate import perturbed_mask

POINT, BOX, CARRIED = 0, 1, 2  # the kinds of first prompt
_KIND_SHARES = (0.55, 0.27, 0.18)
MASK_LOGIT = 8.0  # a mask prompt's certain pixels, in logits
_SMALLEST, _LARGEST = 6, 0.6  # a target in mask pixels, and as a share of the slice


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


@dataclass(frozen=True)
class Target:
    """An object to ask for: the share of each mask pixel (m, m) it fills, there and, if it is seen, one slice away."""

    filled: FloatArray
    neighbour: FloatArray | None

    @property
    def mask(self) -> MaskArray:
        return np.asarray(self.filled >= 0.5)


@dataclass(frozen=True)
class MadeSlice:
    """`image` (S, S), 0 to 255, and the objects in it that may be asked for."""

    image: FloatArray
    targets: list[Target]


class SyntheticBatches(Dataset):
    """Batch number `index` of the run with this seed; `size` is the image's side, `mask_size` the masks'."""

    def __init__(self, seed: int, length: int, size: int, mask_size: int, images: int, objects: int) -> None:
        self.seed, self.length, self.size, self.mask_size = seed, length, size, mask_size
        self.images, self.objects = images, objects

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng((self.seed, index))
        made = [draw_slice(rng, self.size, self.mask_size, self.objects) for _ in range(self.images)]
        targets = [target for one in made for target in one.targets]
        prompts = [_first_prompt(rng, target, self.size // self.mask_size) for target in targets]
        kinds, points, labels, masks = (
            torch.from_numpy(np.stack(part)) for part in zip(*prompts, strict=True)
        )
        return Batch(
            images=torch.from_numpy(np.stack([one.image for one in made]))[:, None],
            targets=torch.from_numpy(np.stack([target.filled for target in targets])),
            owners=torch.arange(self.images).repeat_interleave(self.objects),
            kinds=kinds,
            points_xy=points,
            point_labels=labels.long(),
            masks=masks[:, None],
        )


def draw_slice(rng: np.random.Generator, size: int, mask_size: int, count: int) -> MadeSlice:
    """A slice of a new scene with `count` objects to ask for (repeated where it holds fewer)."""
    while True:
        scene = draw_scene(rng)
        here, away = scene.cut(0.0, size), scene.cut(rng.choice([-1, 1]) * rng.uniform(0.004, 0.05), size)
        kept = _extent(rng, size)
        targets = _pick_targets(rng, here, away, kept, mask_size, count)
        if targets:
            break
    image = _painted(rng, scene, here, away)
    chosen = [targets[index % len(targets)] for index in range(count)]
    return MadeSlice(image * kept, chosen)


def _painted(rng: np.random.Generator, scene: Scene, here: LabelSlice, away: LabelSlice) -> FloatArray:
    """A third of the slices are thick: the next one shows through."""
    seen = [here.labels, away.labels] if rng.random() < 0.35 else [here.labels]
    return paint(rng, draw_palette(rng, scene.label_count), seen, here.labels.shape[0] / 256)


def _extent(rng: np.random.Generator, size: int) -> MaskArray:
    """(S, S): half of the slices are not square; their right or lower part is padding, without objects."""
    kept = np.ones((size, size), dtype=bool)
    if rng.random() < 0.5:
        edge = int(size * rng.uniform(0.55, 0.98))
        if rng.random() < 0.5:
            kept[edge:] = False
        else:
            kept[:, edge:] = False
    return kept


def _pick_targets(
    rng: np.random.Generator, here: LabelSlice, away: LabelSlice, kept: MaskArray, mask_size: int, count: int
) -> list[Target]:
    """Three quarters whole objects or their parts, the rest connected regions found at random places."""
    targets: list[Target] = []
    keys = list(here.objects)
    for index in rng.permutation(len(keys)):
        if len(targets) >= 3 * count // 4:
            break
        _add(targets, here.objects[keys[index]], away.objects.get(keys[index]), kept, mask_size)
    for _ in range(4 * count):
        if len(targets) >= count:
            break
        row, column = (int(place) for place in rng.integers(0, len(kept), 2))
        same = here.labels[row, column] == away.labels[row, column]
        region = connected_region(here.labels, row, column)
        neighbour = connected_region(away.labels, row, column) if same else None
        _add(targets, region, neighbour, kept, mask_size)
    return targets


def _add(
    targets: list[Target], mask: MaskArray, neighbour: MaskArray | None, kept: MaskArray, mask_size: int
) -> None:
    """Appends the mask's largest connected part, unless it is too small or too large to ask for."""
    part = _largest_part(mask & kept)
    if part.sum() < _SMALLEST or part.sum() > _LARGEST * part.size:
        return
    filled = _averaged(part, mask_size)
    if (filled >= 0.5).sum() < _SMALLEST:
        return
    away = None if neighbour is None else _averaged(_parts_that_touch(neighbour & kept, part), mask_size)
    if away is not None and not (away >= 0.5).any():
        away = None
    targets.append(Target(filled, away))


def _parts_that_touch(mask: MaskArray, other: MaskArray) -> MaskArray:
    """Those connected parts of `mask` that overlap `other`."""
    parts, _ = ndimage.label(mask)
    return np.isin(parts, np.unique(parts[other & mask])) & mask


def _largest_part(mask: MaskArray) -> MaskArray:
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def _averaged(mask: MaskArray, mask_size: int) -> FloatArray:
    factor = mask.shape[0] // mask_size
    tensor = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    return functional.avg_pool2d(tensor, factor)[0, 0].numpy()


def _first_prompt(
    rng: np.random.Generator, target: Target, factor: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], FloatArray]:
    """Kind (), points (2, 2), labels (2,) and mask logits (m, m) of one prompt."""
    kind, blank = int(rng.choice(3, p=_KIND_SHARES)), np.zeros_like(target.filled)
    if kind == BOX:
        return np.array(kind), rough_box(rng, target.mask, factor), np.array([BOX_START, BOX_STOP]), blank
    labels = np.array([POSITIVE, PADDING])
    if kind == POINT:
        points = np.array([inner_point(rng, target.mask, factor), (0, 0)], dtype=np.float32)
        return np.array(kind), points, labels, blank
    # Carried from the next slice: its mask as it is, or as a model might have got it.
    known = target.filled if target.neighbour is None else target.neighbour
    if target.neighbour is None or rng.random() < 0.5:
        known = perturbed_mask(np.asarray(known >= 0.5), rng).astype(np.float32)
    points = np.array([inner_point(rng, np.asarray(known >= 0.5), factor), (0, 0)], dtype=np.float32)
    return np.array(kind), points, labels, (MASK_LOGIT * (2 * known - 1)).astype(np.float32)
