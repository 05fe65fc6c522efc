"""What one training step sees: augmented slabs of the cases, and the prompts a user could give on their slices.

Randomness comes from the `numpy.random.Generator` handed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.model.medsa import PlanePrompts, SinglePrompt
from lib.prompts.simulate import interior_point, jittered_box, next_click, perturbed_mask, random_click
from lib.prompts.slice_plan import SlicePrompt
from lib.training.slabs import Sample, Slab, TrainingCase, draw_slab
from lib.transforms.geometry import MASK_LOGIT

LABEL_GIVEN = 0.5  # how often a click or box comes with the label's name, as it may in use
INTERIOR_CLICK = 0.5  # how often a click is in the middle rather than anywhere in the object
CARRIED_MASK = 0.25  # how often a carried prompt comes with the neighbour's outline itself
EARLIER_MASK = 0.25  # how often a corrective click comes with the logits it corrects
BOX_JITTER = 0.1  # how far a box's edge may be off, as a share of its side


@dataclass(frozen=True, eq=False)
class Batch:
    """Planes (B, 3, S, S), targets (B, m, m) in 0..1, and P prompts; prompt p is for plane `owners[p]`.

    `depths` are the lengths of the slabs, which follow one another in the planes; they add up to B.
    """

    planes: Tensor
    targets: Tensor
    samples: tuple[Sample, ...]
    prompts: tuple[SinglePrompt, ...]
    owners: tuple[int, ...]
    depths: tuple[int, ...]


def draw_batch(
    cases: Sequence[TrainingCase],
    slices: int,
    prompts_per_slice: int,
    augment: Callable[[Slab], Slab],
    rng: np.random.Generator,
    slab: int = 1,
    weights: Sequence[float] | None = None,
    recorded_share: float = 0.0,
) -> Batch:
    """About `slices` augmented slices, in slabs of `slab`, with about `prompts_per_slice` prompts each.

    As many slabs as come nearest to `slices`, at least one; `weights` and `recorded_share` as in `draw_slab`.
    """
    slabs: list[Slab] = []
    while not slabs or slices - sum(map(len, slabs)) >= slab / 2:
        slabs.append(augment(draw_slab(cases, slab, rng, weights, recorded_share)))
    samples = tuple(sample for drawn in slabs for sample in drawn)
    prompts: list[SinglePrompt] = []
    owners: list[int] = []
    for owner, sample in enumerate(samples):
        asked = draw_prompts(sample, prompts_per_slice, rng)
        prompts += asked
        owners += [owner] * len(asked)
    return Batch(
        planes=torch.cat([_planes(drawn) for drawn in slabs]),
        targets=torch.cat([_soft_targets(drawn) for drawn in slabs]),
        samples=samples,
        prompts=tuple(prompts),
        owners=tuple(owners),
        depths=tuple(len(drawn) for drawn in slabs),
    )


def draw_prompts(sample: Sample, count: int, rng: np.random.Generator) -> list[SinglePrompt]:
    """Prompts a user, or carrying, could give here: `count` of them, fewer where the slice is empty.

    What an annotator gave here is always one of them.
    """
    if sample.recorded is not None:
        return [_given(sample, rng), *_drawn(sample, count - 1, rng)]
    return _drawn(sample, count, rng)


def _drawn(sample: Sample, count: int, rng: np.random.Generator) -> list[SinglePrompt]:
    kinds = [_label_alone]
    if sample.target.any():
        kinds += [_click, _box]
    if sample.neighbour.any():
        kinds += [_carried]
    if len(kinds) > count:
        kinds = [kinds[index] for index in rng.permutation(len(kinds))[:count]]
    elif sample.target.any():
        kinds += [_click] * (count - len(kinds))
    return [kind(sample, rng) for kind in kinds]


def corrective_prompts(
    batch: Batch, logits: Tensor, rng: np.random.Generator
) -> tuple[list[SinglePrompt], list[int]]:
    """A second click where the answer to a first, `logits` (P, m, m), is most wrong; the prompts and owners.

    Only prompts made of clicks alone are corrected, and only where there is an error.
    """
    prompts: list[SinglePrompt] = []
    owners: list[int] = []
    for prompt, owner, answer in zip(batch.prompts, batch.owners, logits, strict=True):
        if not prompt.points or prompt.box_xyxy is not None or prompt.mask_logits is not None:
            continue
        sample = batch.samples[owner]
        point = _error_click(sample, answer)
        if point is not None:
            earlier = answer if rng.random() < EARLIER_MASK else None
            prompts.append(SinglePrompt((*prompt.points, point), None, earlier, prompt.label_id))
            owners.append(owner)
    return prompts, owners


def stack(prompts: Sequence[SinglePrompt], device: torch.device) -> PlanePrompts:
    """The prompts as tensors on the model's device."""
    return PlanePrompts.stack(prompts).to(device)


def _label_alone(sample: Sample, rng: np.random.Generator) -> SinglePrompt:
    return SinglePrompt(label_id=sample.label_id)


def _given(sample: Sample, rng: np.random.Generator) -> SinglePrompt:
    """What the annotator marked on this slice."""
    marks = sample.recorded or SlicePrompt()
    points = tuple((*_model_point(sample, (u, v))[:2], label) for u, v, label in marks.points)
    box = None
    if marks.box is not None:
        edges = sample.geometry.boxes_to_model(np.asarray([marks.box], dtype=np.float64))[0]
        box = tuple(float(edge) for edge in edges)
    return SinglePrompt(points=points, box_xyxy=box, label_id=_maybe_label(sample, rng))


def _click(sample: Sample, rng: np.random.Generator) -> SinglePrompt:
    interior = rng.random() < INTERIOR_CLICK
    point_uv = interior_point(sample.target) if interior else random_click(sample.target, rng)
    return SinglePrompt(points=(_model_point(sample, point_uv),), label_id=_maybe_label(sample, rng))


def _box(sample: Sample, rng: np.random.Generator) -> SinglePrompt:
    box = np.asarray([jittered_box(sample.target, rng, BOX_JITTER)], dtype=np.float64)
    return SinglePrompt(
        box_xyxy=tuple(float(edge) for edge in sample.geometry.boxes_to_model(box)[0]),
        label_id=_maybe_label(sample, rng),
    )


def _carried(sample: Sample, rng: np.random.Generator) -> SinglePrompt:
    """What carrying asks: the middle of the neighbour's outline, on a slice where the object may have ended."""
    mask = perturbed_mask(sample.neighbour, rng)
    shown = rng.random() < CARRIED_MASK
    return SinglePrompt(
        points=(_model_point(sample, interior_point(mask)),),
        mask_logits=sample.geometry.masks_to_logits(_row(mask))[0] if shown else None,
        label_id=_maybe_label(sample, rng),
    )


def _error_click(sample: Sample, logits: Tensor) -> tuple[float, float, int] | None:
    """The next click for the answer (m, m): x, y in model pixels and 1 or 0."""
    answer = sample.geometry.logits_to_voxels(logits[None].float())[0].cpu().numpy() > 0
    click = next_click(sample.target[..., None], answer[..., None], 2, (*sample.geometry.spacing_uv, 1.0))
    if click is None:
        return None
    (u, v, _), positive = click
    x, y, _ = _model_point(sample, (u, v))
    return x, y, int(positive)


def _model_point(sample: Sample, point_uv: tuple[int, ...]) -> tuple[float, float, int]:
    x, y = sample.geometry.points_to_model(np.asarray([point_uv], dtype=np.float64))[0]
    return float(x), float(y), 1


def _maybe_label(sample: Sample, rng: np.random.Generator) -> int:
    return sample.label_id if rng.random() < LABEL_GIVEN else -1


def _planes(slab: Slab) -> Tensor:
    """(D, 3, S, S): the slab's slices as the model takes them."""
    return slab[0].geometry.planes_to_model(torch.from_numpy(np.stack([sample.plane for sample in slab])))


def _soft_targets(slab: Slab) -> Tensor:
    """(D, m, m): the share of each mask pixel that the label covers."""
    targets = torch.from_numpy(np.stack([sample.target for sample in slab]))
    return slab[0].geometry.masks_to_logits(targets) / (2 * MASK_LOGIT) + 0.5


def _row(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None]
