"""From prompts on a volume to a mask on its voxel grid.

Concurrency. A Predictor may be used from several threads. Shared between them: the model, guarded by
`_model_lock`, and the embedding cache, which guards itself. Order: model lock, then cache lock. The model
lock is held for one call of the model (a chunk of slices to encode, a batch of prompts to decode), never for
a whole request and never while voxels are read, rescaled or written; requests therefore interleave, and each
works on its own values. A Predictor keeps no other state: the same volume and prompts give the same answer
whatever was asked before.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lib.embeddings import EmbeddingCache, SliceEncoder, VolumeEmbeddings
from lib.errors import NotFoundError
from lib.honour import honour_clicks
from lib.model.medsa import Masks, MedSA, PlanePrompts, SinglePrompt
from lib.prompts.promptset import PromptSet
from lib.prompts.simulate import interior_point
from lib.prompts.slice_plan import EdgesUV, SlicePlan, SlicePrompt, plan_slices
from lib.propagation import CarryStep, PlaneMask, carry
from lib.settings import IntensitySettings
from lib.transforms.geometry import MASK_LOGIT, AxisChoice, PlaneGeometry, put_planes
from lib.turns import Asker
from lib.volume import Volume

MaskArray = NDArray[np.uint8]

# Slices brought back to voxels at once; bounds the memory for bases with large inputs.
VOXEL_BATCH = 16
# Slices decoded at once without clicks: larger batches are no faster on a CPU.
AUTOMATIC_BATCH = 8


@dataclass(frozen=True)
class Prediction:
    """A mask (i, j, k), 0 or 1, on the volume's grid.

    `slices` are those that were answered, in order along the slice axis; `quality` is the IoU the model
    predicts for each; `seconds` were spent in "encode", "decode" and in "total".
    """

    mask: MaskArray
    slices: tuple[int, ...]
    quality: dict[int, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class LabelPrediction:
    """Several labels at once: `mask` (i, j, k) holds 1 + a label's position, `objects` each label's own details."""

    mask: MaskArray
    objects: dict[str, Prediction]
    seconds: dict[str, float]


@dataclass(frozen=True)
class AutomaticPrediction:
    """Probabilities (n, m, m) of the n slices `slices` at mask resolution: rows y, columns x."""

    probability: NDArray[np.float32]
    slices: tuple[int, ...]


class Predictor:
    """Answers prompts with one model. `model_key` names model and adapter version in the embedding cache.

    Moves the model to `device` and into evaluation mode. `slice_axis` is "auto", "i", "j" or "k".
    """

    def __init__(
        self,
        model: MedSA,
        model_key: str,
        intensity: IntensitySettings,
        slice_axis: AxisChoice,
        cache: EmbeddingCache,
        device: str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.slice_axis = slice_axis
        self._model_lock = threading.Lock()
        self._encoder = SliceEncoder(model, model_key, intensity, cache, self.device, self._model_lock)

    def predict(
        self,
        volume: Volume,
        prompts: PromptSet,
        *,
        whole_object: bool = True,
        only_slice: int | None = None,
        asker: Asker | None = None,
    ) -> Prediction:
        """The object that `prompts` mark in `volume`; with `whole_object` False on the marked slices alone.

        A slice with a positive click or a box's middle slice starts the object. It is then carried from slice
        to slice until it ends; negative clicks count on the slice they are on. An empty mask is a legal
        answer.
        """
        started = time.perf_counter()
        embeddings = self._encoder.open(volume, self.slice_axis)
        plan = plan_slices(prompts, embeddings.axis, volume.shape_ijk)
        request = _Request(self, embeddings, plan, self._label_id(prompts.label))
        found = request.seeds()
        if only_slice is not None:
            found = {index: plane for index, plane in found.items() if index == only_slice}
        if whole_object:
            found = carry(found, plan.bounds, request.step)
        mask = _to_voxels(found, embeddings, plan)
        seconds = {
            "encode": embeddings.encode_seconds,
            "decode": request.decode_seconds,
            "total": time.perf_counter() - started,
        }
        slices = tuple(sorted(found))
        return Prediction(mask, slices, {index: found[index].predicted_iou for index in slices}, seconds)

    def predict_labels(
        self, volume: Volume, by_label: Mapping[str, PromptSet], *, asker: Asker | None = None
    ) -> LabelPrediction:
        """Each label's object; a voxel of two goes to the first."""
        objects = {name: self.predict(volume, prompts) for name, prompts in by_label.items()}
        return _merged(volume, objects)

    def automatic_labels(
        self, volume: Volume, labels: Sequence[str], *, asker: Asker | None = None
    ) -> LabelPrediction:
        """Each label without a click; a voxel of two goes to the first."""
        objects = {}
        for name in labels:
            mask = self.automatic_mask(volume, name)
            objects[name] = Prediction(mask, (), {}, {"encode": 0.0, "decode": 0.0})
        return _merged(volume, objects)

    def automatic(self, volume: Volume, label: str, stride: int = 1) -> AutomaticPrediction:
        """What the model sees without any click, on every `stride`-th slice.

        The prompt is `label`'s own token where the adapter is trained, none at all where it is not. Raises
        NotFoundError for a label the model does not have.
        """
        embeddings = self._encoder.open(volume, self.slice_axis)
        slices = range(0, embeddings.slice_count, stride)
        logits = self._automatic_logits(embeddings, label, slices)
        return AutomaticPrediction(logits.sigmoid().numpy(), tuple(slices))

    def automatic_mask(self, volume: Volume, label: str) -> MaskArray:
        """The same for every slice, as a mask (i, j, k), 0 or 1, on the volume's grid."""
        embeddings = self._encoder.open(volume, self.slice_axis)
        slices = range(embeddings.slice_count)
        logits = self._automatic_logits(embeddings, label, slices)
        found = {index: PlaneMask(logits[index], 1.0) for index in slices}
        return _to_voxels(found, embeddings, SlicePlan({}, slices, {}))

    def decode(self, embeddings: Tensor, prompts: Sequence[SinglePrompt]) -> Masks:
        """All masks of each prompt from embeddings (P, 256, g, g), one a prompt; float32, on the CPU."""
        stacked = PlanePrompts.stack(prompts).to(self.device)
        with self._model_lock, torch.inference_mode():
            masks = self.model.decode(embeddings, stacked)
            return Masks(masks.logits.float().cpu(), masks.iou.float().cpu())

    def _automatic_logits(self, embeddings: VolumeEmbeddings, label: str, slices: range) -> Tensor:
        prompt = SinglePrompt(label_id=self._label_id(label))
        batches = []
        for start in range(0, len(slices), AUTOMATIC_BATCH):
            batch = slices[start : start + AUTOMATIC_BATCH]
            batches.append(self.decode(embeddings.fetch(batch), [prompt] * len(batch)).logits[:, 0])
        return torch.cat(batches)

    def _label_id(self, label: str | None) -> int:
        """Index of the label meant, -1 for none.

        OHIF does not send the label's name; where there is one label only, it is the one meant. Raises
        NotFoundError for a label the model does not have.
        """
        labels = self.model.labels
        if label is None:
            return 0 if len(labels) == 1 else -1
        if label not in labels:
            raise NotFoundError("label", label, f"one of {', '.join(labels)}")
        return labels.index(label)


@dataclass
class _Request:
    """One call of `Predictor.predict`: turns slice prompts and carrying steps into the model's prompts."""

    predictor: Predictor
    embeddings: VolumeEmbeddings
    plan: SlicePlan
    label_id: int
    decode_seconds: float = 0.0
    allowed: dict[EdgesUV | None, Tensor] = field(default_factory=dict)

    def seeds(self) -> dict[int, PlaneMask]:
        """The masks of the slices that say where the object is, decoded together."""
        indices = [index for index, prompt in sorted(self.plan.prompts.items()) if prompt.is_seed]
        if not indices:
            return {}
        prompts = [self._seed_prompt(self.plan.prompts[index]) for index in indices]
        # A trained adapter knows whole from part; for the base alone a lone click needs SAM's three guesses.
        trained = self.predictor.model.trained
        ambiguous = torch.tensor([prompt.is_ambiguous and not trained for prompt in prompts])
        logits, iou = self._decode(indices, prompts).choose(ambiguous)
        return {index: self._plane_mask(index, logits[row], iou[row]) for row, index in enumerate(indices)}

    def step(self, steps: Sequence[CarryStep]) -> list[PlaneMask]:
        """Carrying: the most interior point of the neighbour's mask becomes the prompt.

        The mask itself is no part of it: measured, errors then grow from slice to slice, and the object does
        not end. A point lets every slice be judged by its own image.
        """
        masks = self._decode([step.index for step in steps], [self._carry_prompt(step) for step in steps])
        answers = []
        for row, step in enumerate(steps):
            entry = 0 if self.predictor.model.trained else _most_alike(masks.logits[row], step.previous)
            answers.append(self._plane_mask(step.index, masks.logits[row, entry], masks.iou[row, entry]))
        return answers

    def _seed_prompt(self, prompt: SlicePrompt) -> SinglePrompt:
        geometry = self.embeddings.geometry
        box = None
        if prompt.box is not None:
            box = geometry.boxes_to_model(np.array([prompt.box]))[0].tolist()
        return SinglePrompt(self._model_points(prompt), box, label_id=self.label_id)

    def _carry_prompt(self, step: CarryStep) -> SinglePrompt:
        geometry = self.embeddings.geometry
        marked = self._model_points(self.plan.prompts.get(step.index, SlicePrompt()))
        inside = step.previous.inside.copy()
        for x, y, _ in marked:
            # All are negative (a positive one makes a seed): the carried point must keep away from them.
            pixel = np.rint(geometry.model_to_mask_pixels(np.array([(x, y)])))[0]
            column, row = pixel.astype(int).clip(0, geometry.mask_size - 1)
            inside[row, column] = False
        row, column = interior_point(inside if inside.any() else step.previous.inside)
        x, y = geometry.mask_pixels_to_model(np.array([(column, row)]))[0]
        return SinglePrompt([(float(x), float(y), 1), *marked], label_id=self.label_id)

    def _model_points(self, prompt: SlicePrompt) -> list[tuple[float, float, int]]:
        if not prompt.points:
            return []
        table = np.array(prompt.points)
        xy = self.embeddings.geometry.points_to_model(table[:, :2])
        return [(float(x), float(y), int(label)) for (x, y), label in zip(xy, table[:, 2], strict=True)]

    def _decode(self, indices: Sequence[int], prompts: Sequence[SinglePrompt]) -> Masks:
        features = self.embeddings.fetch(indices)
        started = time.perf_counter()
        masks = self.predictor.decode(features, prompts)
        self.decode_seconds += time.perf_counter() - started
        return masks

    def _plane_mask(self, index: int, logits: Tensor, iou: Tensor) -> PlaneMask:
        """With the annotator's clicks on this slice honoured, whatever the network made of them."""
        clicks = self._model_points(self.plan.prompts.get(index, SlicePrompt()))
        logits = honour_clicks(logits, clicks, self.embeddings.geometry)
        return PlaneMask(logits.masked_fill(~self._allowed(index), -MASK_LOGIT), float(iou))

    def _allowed(self, index: int) -> Tensor:
        """(m, m) bool: what lies in the slice, and in the window of a box that covers it."""
        window = self.plan.windows.get(index)
        if window not in self.allowed:
            self.allowed[window] = _window_at_mask_size(self.embeddings.geometry, window)
        return self.allowed[window]


def _merged(volume: Volume, objects: dict[str, Prediction]) -> LabelPrediction:
    mask = np.zeros(volume.shape_ijk, dtype=np.uint8)
    for number, found in enumerate(objects.values(), start=1):
        mask[(found.mask > 0) & (mask == 0)] = number
    seconds = {key: sum(found.seconds[key] for found in objects.values()) for key in ("encode", "decode")}
    return LabelPrediction(mask, objects, seconds)


def _most_alike(logits: Tensor, previous: PlaneMask) -> int:
    """Which of the masks (4, m, m) overlaps most (Dice) with the neighbour's; the first of equal ones.

    The base's masks show part and whole; on the next slice the annotator means the same of them.
    """
    inside = (logits > 0).numpy()
    common = np.count_nonzero(inside & previous.inside, axis=(1, 2))
    areas = np.count_nonzero(inside, axis=(1, 2)) + previous.area
    return int(np.argmax(common / np.maximum(areas, 1)))


def _window_at_mask_size(geometry: PlaneGeometry, window: EdgesUV | None) -> Tensor:
    """(m, m) bool: the pixels that a window (for None, the whole slice) touches, and their neighbours.

    The neighbours are kept because the map to voxels interpolates between pixels: it would shave an object
    that reaches the edge of the slice. Where a window ends is cut exactly on the voxels.
    """
    u0, v0, u1, v1 = window or (0, 0, *geometry.size_uv)
    plane = torch.zeros(1, *geometry.size_uv)
    plane[:, u0:u1, v0:v1] = 1.0
    touched = (geometry.masks_to_logits(plane) > -MASK_LOGIT).float()
    return functional.max_pool2d(touched, kernel_size=3, stride=1, padding=1)[0] > 0


def _to_voxels(found: Mapping[int, PlaneMask], embeddings: VolumeEmbeddings, plan: SlicePlan) -> MaskArray:
    """The masks of slices -> (i, j, k) uint8 on the volume's grid; slices without one are empty."""
    mask = np.zeros(embeddings.volume.shape_ijk, dtype=np.uint8)
    indices = sorted(found)
    for start in range(0, len(indices), VOXEL_BATCH):
        batch = indices[start : start + VOXEL_BATCH]
        logits = embeddings.geometry.logits_to_voxels(torch.stack([found[index].logits for index in batch]))
        planes = (logits > 0).numpy().astype(np.uint8)
        for row, index in enumerate(batch):
            if index in plan.windows:
                planes[row] = _cropped(planes[row], plan.windows[index])
        put_planes(mask, planes, embeddings.axis, batch)
    return mask


def _cropped(plane: MaskArray, window: EdgesUV) -> MaskArray:
    u0, v0, u1, v1 = window
    kept = np.zeros_like(plane)
    kept[u0:u1, v0:v1] = plane[u0:u1, v0:v1]
    return kept
