"""What one training step sees: augmented slabs of the cases, and the prompts a user could give on their slices.

A slab is a run of consecutive slices of one case, which the encoder's depth branch sees together; without that
branch it is one slice. Slices are (n_u, n_v) in voxels, as `lib.transforms.geometry` cuts them. Randomness comes
from the `numpy.random.Generator` handed in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandScaleIntensity,
    RandShiftIntensity,
)
from monai.transforms.spatial.array import RandAffine
from numpy.typing import NDArray
from torch import Tensor

from lib.model.medsa import PlanePrompts, SinglePrompt
from lib.prompts.simulate import interior_point, jittered_box, next_click, perturbed_mask, random_click
from lib.training.cases import Case
from lib.training.viewpoint import Viewpoint
from lib.transforms.geometry import MASK_LOGIT, PlaneGeometry, plane_geometry, slice_axis, take_planes
from lib.transforms.intensity import to_model_range

FILLED_SHARE = 0.8  # of the slices of a step; the rest hold no voxel of their label
BEYOND_SHARE = 0.6  # of the empty slices; these touch the object's end, where carrying must stop
LABEL_GIVEN = 0.5  # how often a click or box comes with the label's name, as it may in use
INTERIOR_CLICK = 0.5  # how often a click is in the middle rather than anywhere in the object
CARRIED_MASK = 0.25  # how often a carried prompt comes with the neighbour's outline itself
EARLIER_MASK = 0.25  # how often a corrective click comes with the logits it corrects
BOX_JITTER = 0.1  # how far a box's edge may be off, as a share of its side
WHITE = 255.0

Slices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """One case ready to be cut: planes float16 (n, n_u, n_v) in 0..255, labels uint8 of the same shape.

    The planes of a colour image are (n, n_u, n_v, 3).
    `filled` and `beyond` map a label's index to the slices that hold it, and to the empty ones beside those.
    """

    case_id: str
    geometry: PlaneGeometry
    planes: NDArray[np.float16]
    labels: NDArray[np.uint8]
    values: tuple[int, ...]
    filled: Mapping[int, Slices]
    beyond: Mapping[int, Slices]


@dataclass(frozen=True, eq=False)
class Sample:
    """One slice and what is asked for: `target` the label there, `neighbour` that on a slice beside it.

    plane float32 (n_u, n_v), in colour (n_u, n_v, 3), in 0..255, target and neighbour bool (n_u, n_v). `neighbour`
    is empty where neither slice beside it holds the label.
    """

    plane: NDArray[np.float32]
    target: NDArray[np.bool_]
    neighbour: NDArray[np.bool_]
    label_id: int
    geometry: PlaneGeometry


# Consecutive slices of one case, in order, with one label.
Slab = tuple[Sample, ...]


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


def prepare_case(case: Case, view: Viewpoint, image_size: int, mask_size: int) -> TrainingCase:
    """Cuts a case into normalised planes, once for a whole run."""
    axis = slice_axis(case.volume.spacing_mm, view.slice_axis, case.volume.shape_ijk)
    shape = case.volume.shape_ijk
    everything = range(shape[axis])
    values = tuple(view.labels.values())
    cut = np.ascontiguousarray(take_planes(case.label, axis, everything))
    filled = {
        index: np.flatnonzero((cut == value).any(axis=(1, 2)))
        for index, value in enumerate(values)
        if (cut == value).any()
    }
    return TrainingCase(
        case_id=case.case_id,
        geometry=plane_geometry(shape, case.volume.spacing_mm, axis, image_size, mask_size),
        planes=take_planes(to_model_range(case.volume.array, view.intensity), axis, everything).astype(
            np.float16
        ),
        labels=cut,
        values=values,
        filled=filled,
        beyond={index: _beyond(slices, shape[axis]) for index, slices in filled.items()},
    )


def draw_slab(cases: Sequence[TrainingCase], length: int, rng: np.random.Generator) -> Slab:
    """`length` consecutive slices of a random case for one of its labels, not yet augmented.

    All of the case where it has fewer. They are placed around a slice that is drawn to hold the label or not; it
    may be any of them.
    """
    case = cases[rng.integers(len(cases))]
    label_id = int(rng.choice(sorted(case.filled)))
    anchor = _draw_slice(case, label_id, rng)
    count = len(case.planes)
    length = min(length, count)
    first = int(rng.integers(max(0, anchor - length + 1), min(anchor, count - length) + 1))
    planes = case.planes[first : first + length].astype(np.float32)
    targets = case.labels[first : first + length] == case.values[label_id]
    return tuple(
        Sample(plane, target, _neighbour(case, label_id, first + place, rng), label_id, case.geometry)
        for place, (plane, target) in enumerate(zip(planes, targets, strict=True))
    )


class Augmentation:
    """Light changes of a slab and its masks. No flips: labels may tell left from right.

    One move and one change of brightness and contrast for all slices of a slab, as between two volumes; only the
    noise differs from slice to slice.
    """

    def __init__(self, seed: int) -> None:
        self._intensity = Compose(
            [
                RandScaleIntensity(factors=0.2, prob=0.5),
                RandShiftIntensity(offsets=0.1, prob=0.5),
                RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5)),
                RandGaussianNoise(prob=0.3, std=0.03),
            ]
        ).set_random_state(seed)
        self._affine = RandAffine(
            prob=0.5,
            rotate_range=0.25,
            shear_range=(0.1, 0.1),
            translate_range=(3.0, 3.0),
            scale_range=(0.15, 0.15),
            padding_mode="zeros",
        )
        self._affine.set_random_state(seed + 1)

    def __call__(self, slab: Slab) -> Slab:
        """The same slab, moved and recoloured."""
        shades = np.concatenate([_channels_first(sample.plane) for sample in slab]) / WHITE
        outlines = [outline for sample in slab for outline in (sample.target, sample.neighbour)]
        stack = np.concatenate([shades, np.stack(outlines)]).astype(np.float32)
        # As one image with many channels: MONAI moves them all alike, and in one call.
        moved = torch.as_tensor(self._affine(stack)).numpy()
        shades = np.asarray(self._intensity(moved[: len(shades)])).clip(0.0, 1.0) * WHITE
        planes = np.split(shades.astype(np.float32), len(slab))
        masks = np.split(moved[len(shades) :] > 0.5, len(slab))
        return tuple(
            replace(sample, plane=_channels_last(plane), target=target, neighbour=neighbour)
            for sample, plane, (target, neighbour) in zip(slab, planes, masks, strict=True)
        )


def draw_batch(
    cases: Sequence[TrainingCase],
    slices: int,
    prompts_per_slice: int,
    augment: Callable[[Slab], Slab],
    rng: np.random.Generator,
    slab: int = 1,
) -> Batch:
    """About `slices` augmented slices, in slabs of `slab`, with about `prompts_per_slice` prompts each.

    As many slabs as come nearest to `slices`, at least one.
    """
    slabs: list[Slab] = []
    while not slabs or slices - sum(map(len, slabs)) >= slab / 2:
        slabs.append(augment(draw_slab(cases, slab, rng)))
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
    """Prompts a user, or carrying, could give here: `count` of them, fewer where the slice is empty."""
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


def _beyond(filled: Slices, count: int) -> Slices:
    beside = np.union1d(filled - 1, filled + 1)
    return np.setdiff1d(beside[(beside >= 0) & (beside < count)], filled)


def _draw_slice(case: TrainingCase, label_id: int, rng: np.random.Generator) -> int:
    filled, beyond = case.filled[label_id], case.beyond[label_id]
    empty = np.setdiff1d(np.arange(len(case.planes)), filled)
    if len(empty) == 0 or rng.random() < FILLED_SHARE:
        return int(rng.choice(filled))
    if len(beyond) and rng.random() < BEYOND_SHARE:
        return int(rng.choice(beyond))
    return int(rng.choice(empty))


def _neighbour(case: TrainingCase, label_id: int, index: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The label on one of the two slices beside `index`, preferably one that has it."""
    beside = [other for other in (index - 1, index + 1) if other in case.filled[label_id]]
    if not beside:
        return np.zeros(case.labels.shape[1:], dtype=bool)
    return case.labels[int(rng.choice(beside))] == case.values[label_id]


def _label_alone(sample: Sample, rng: np.random.Generator) -> SinglePrompt:
    return SinglePrompt(label_id=sample.label_id)


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


def _channels_first(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1, n_u, n_v), in colour (3, n_u, n_v): the order MONAI's transforms want."""
    return plane[None] if plane.ndim == 2 else np.moveaxis(plane, -1, 0)


def _channels_last(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of `_channels_first`."""
    return channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)


def _row(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None]
