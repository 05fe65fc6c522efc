"""One object asked of one volume: slice prompts and carrying steps become the model's prompts, and masks come back.

Used by one thread, which holds the device's turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lib.embeddings import VolumeEmbeddings
from lib.honour import honour_clicks
from lib.model.medsa import Masks, SinglePrompt, expected_iou
from lib.prompts.promptset import PromptSet
from lib.prompts.simulate import interior_depth, interior_point
from lib.prompts.slice_plan import EdgesUV, SlicePlan, SlicePrompt
from lib.propagation import CarryStep, PlaneMask, carry, connected, overlap, revise
from lib.transforms.geometry import MASK_LOGIT, PlaneGeometry

ModelPoints = list[tuple[float, float, int]]
Decode = Callable[[Sequence[int], Sequence[SinglePrompt]], Masks]

# A negative click this deep inside a slice's mask (as a share of the deepest place) does not trim it: it says that the
# object is not in this slice at all.
DENIAL_DEPTH = 0.5
# A refined mask that has less than this in common (Dice) with the one that was sent is another object.
MIN_REFINED_OVERLAP = 0.5


@dataclass
class ObjectQuery:
    """Answers one object's prompts. `decode` runs the model; `trained` says whether its adapter knows the labels.

    `of_others` are places (slice, u, v) that belong to other objects: they say nothing about the rest of their slice.
    """

    embeddings: VolumeEmbeddings
    plan: SlicePlan
    label_id: int
    trained: bool
    decode_slices: Decode
    of_others: frozenset[tuple[int, int, int]] = frozenset()
    allowed: dict[EdgesUV | None, Tensor] = field(default_factory=dict)

    def found(self, whole_object: bool) -> dict[int, PlaneMask]:
        """The object as the prompts alone say."""
        seeds = self._seeds()
        return carry(seeds, self.plan.bounds, self._step) if whole_object else seeds

    def corrected(
        self, earlier: Mapping[int, PlaneMask], changed: Sequence[int], whole_object: bool
    ) -> dict[int, PlaneMask]:
        """The object found `earlier`, with the prompts on the `changed` slices taken into account."""
        marked = self._corrections(earlier, changed)
        # The annotator said that the object is there, however little the model shows of it.
        seeds = {index: plane for index, plane in marked.items() if self.plan.prompts[index].is_seed}
        if not whole_object:
            return {index: plane for index, plane in {**earlier, **marked}.items() if plane.area} | seeds
        fixed = self.plan.prompts.keys()
        revised = revise(
            earlier, marked, fixed, self.plan.bounds, lambda steps: self._revising_step(steps, earlier)
        )
        revised |= seeds
        return connected(revised, [index for index in revised if self._is_confirmed(index, earlier)])

    def given_planes(self, prompts: PromptSet) -> dict[int, PlaneMask]:
        """The slices of the mask that came with `prompts`, within the plan's bounds, as answers that are sure."""
        if prompts.mask is None:
            return {}
        planes = np.moveaxis(prompts.mask.inside, self.embeddings.axis, 0)
        filled = np.flatnonzero(planes.any(axis=(1, 2))).tolist()
        indices = [index for index in filled if index in self.plan.bounds]
        if not indices:
            return {}
        logits = self.embeddings.geometry.masks_to_logits(torch.from_numpy(planes[indices]).float())
        return {
            index: PlaneMask(_visible(logits[row]), 1.0, planes[index]) for row, index in enumerate(indices)
        }

    def refined(self, given: Mapping[int, PlaneMask]) -> dict[int, PlaneMask]:
        """A mask that came without any click, each slice of it as the model sees it; what it would lose stays."""
        indices = sorted(given)
        prompts = [self._with_known_mask(given[index], []) for index in indices]
        masks = self.decode_slices(indices, prompts)
        answers: dict[int, PlaneMask] = {}
        for row, index in enumerate(indices):
            answer = self._plane_mask(index, masks.logits[row, 0], masks.iou[row, 0])
            answers[index] = answer if overlap(answer, given[index]) >= MIN_REFINED_OVERLAP else given[index]
        return answers

    def _is_confirmed(self, index: int, earlier: Mapping[int, PlaneMask]) -> bool:
        """Whether the annotator said that the object is in this slice."""
        prompt = self.plan.prompts.get(index)
        given = index in earlier and earlier[index].given is not None
        return given or (prompt is not None and prompt.is_seed)

    def _seeds(self) -> dict[int, PlaneMask]:
        """The masks of the slices that say where the object is, decoded together."""
        indices = [index for index, prompt in sorted(self.plan.prompts.items()) if prompt.is_seed]
        if not indices:
            return {}
        prompts = [self._seed_prompt(self.plan.prompts[index]) for index in indices]
        # A trained adapter knows whole from part; for the base alone a lone click needs SAM's three guesses.
        ambiguous = torch.tensor([prompt.is_ambiguous and not self.trained for prompt in prompts])
        logits, iou = self.decode_slices(indices, prompts).choose(ambiguous)
        return {index: self._plane_mask(index, logits[row], iou[row]) for row, index in enumerate(indices)}

    def _corrections(self, earlier: Mapping[int, PlaneMask], changed: Sequence[int]) -> dict[int, PlaneMask]:
        """The `changed` slices anew, from their clicks and the mask that the annotator saw there."""
        denied = [index for index in changed if self._is_denied(index, earlier.get(index))]
        asked = [index for index in changed if index not in denied and self._can_be_asked(index, earlier)]
        answers = {index: self._empty(index) for index in denied}
        if not asked:
            return answers
        prompts = [self._correcting_prompt(index, earlier.get(index)) for index in asked]
        masks = self.decode_slices(asked, prompts)
        for row, index in enumerate(asked):
            entry = self._entry(prompts[row], masks, row, _nearest(earlier, index))
            answers[index] = self._plane_mask(index, masks.logits[row, entry], masks.iou[row, entry])
        return answers

    def _can_be_asked(self, index: int, earlier: Mapping[int, PlaneMask]) -> bool:
        return index in earlier or self.plan.prompts[index].is_seed

    def _correcting_prompt(self, index: int, known: PlaneMask | None) -> SinglePrompt:
        prompt = self.plan.prompts[index]
        if known is None:
            return self._seed_prompt(prompt)
        if prompt.is_seed:
            return SinglePrompt(
                self._model_points(prompt), self._model_box(prompt), known.logits.float(), self.label_id
            )
        return self._with_known_mask(known, self._model_points(prompt))

    def _entry(self, prompt: SinglePrompt, masks: Masks, row: int, like: PlaneMask | None) -> int:
        """Which of a prompt's masks answers it; of a lone click's, the one that is good and like its neighbour."""
        if not prompt.is_ambiguous or self.trained:
            return 0
        logits = masks.logits[row, 1:].float()
        score = masks.iou[row, 1:].clamp(min=1e-6) * expected_iou(logits)
        if like is not None:
            score = score * torch.tensor([0.1 + overlap(PlaneMask(one, 1.0), like) for one in logits])
        return int(score.argmax()) + 1

    def _step(self, steps: Sequence[CarryStep]) -> list[PlaneMask | None]:
        """Carrying: the most interior point of the neighbour's mask becomes the prompt.

        The mask itself is no part of it: measured, errors then grow from slice to slice, and the object does
        not end. A point lets every slice be judged by its own image.
        """
        going = [step for step in steps if not self._is_denied(step.index, step.previous)]
        if not going:
            return [None] * len(steps)
        masks = self.decode_slices(
            [step.index for step in going], [self._carry_prompt(step) for step in going]
        )
        answers: dict[int, PlaneMask] = {}
        for row, step in enumerate(going):
            entry = 0 if self.trained else _most_alike(masks.logits[row], step.previous)
            answers[step.index] = self._plane_mask(
                step.index, masks.logits[row, entry], masks.iou[row, entry]
            )
        return [answers.get(step.index) for step in steps]

    def _revising_step(
        self, steps: Sequence[CarryStep], earlier: Mapping[int, PlaneMask]
    ) -> list[PlaneMask | None]:
        """Carrying a correction: over slices without a mask the object itself, over others the clicks that made it."""
        new = [step for step in steps if step.index not in earlier]
        old = [step for step in steps if step.index in earlier]
        answers = dict(zip((step.index for step in new), self._step(new) if new else [], strict=True))
        answers |= self._repeated(old, earlier)
        return [answers.get(step.index) for step in steps]

    def _repeated(
        self, steps: Sequence[CarryStep], earlier: Mapping[int, PlaneMask]
    ) -> dict[int, PlaneMask | None]:
        """The clicks of the corrected slice, asked again at the same places of its neighbours.

        An error reaches over several slices, and so does what corrects it. Asked are the slices that make the same
        error: where all clicks are on their side already, there is nothing to correct.
        """
        clicks = {step.index: self._misjudged(step.origin, earlier[step.index]) for step in steps}
        asked = [step.index for step in steps if clicks[step.index]]
        if not asked:
            return {}
        prompts = [self._with_known_mask(earlier[index], clicks[index]) for index in asked]
        masks = self.decode_slices(asked, prompts)
        answers: dict[int, PlaneMask | None] = {}
        for row, index in enumerate(asked):
            logits = honour_clicks(masks.logits[row, 0], clicks[index], self.embeddings.geometry)
            answers[index] = self._plane_mask(index, logits, masks.iou[row, 0])
        return answers

    def _misjudged(self, origin: int, mask: PlaneMask) -> ModelPoints:
        """The clicks on slice `origin` that would be on the wrong side of `mask`."""
        clicks = self._model_points(self.plan.prompts[origin])
        pixels = self._mask_pixels(clicks)
        return [
            click
            for click, pixel in zip(clicks, pixels, strict=True)
            if bool(mask.inside[pixel]) != bool(click[2])
        ]

    def _is_denied(self, index: int, mask: PlaneMask | None) -> bool:
        """Whether the clicks on a slice say that the object, which would look like `mask`, is not there at all."""
        prompt = self.plan.prompts.get(index)
        if prompt is None or prompt.is_seed or mask is None or not mask.area:
            return False
        depth = interior_depth(mask.inside)
        own = [point for point in prompt.points if (index, *point[:2]) not in self.of_others]
        pixels = self._mask_pixels(self._model_points(SlicePrompt(tuple(own))))
        return any(depth[row, column] >= DENIAL_DEPTH * depth.max() for row, column in pixels)

    def _seed_prompt(self, prompt: SlicePrompt) -> SinglePrompt:
        return SinglePrompt(self._model_points(prompt), self._model_box(prompt), label_id=self.label_id)

    def _carry_prompt(self, step: CarryStep) -> SinglePrompt:
        # All clicks here are negative (a positive one makes a seed): the carried point must keep away from them.
        marked = self._model_points(self.plan.prompts.get(step.index, SlicePrompt()))
        return self._with_interior_point(step.previous, marked, None)

    def _with_known_mask(self, mask: PlaneMask, clicks: ModelPoints) -> SinglePrompt:
        """`clicks` on a slice whose object is known to be about `mask`."""
        return self._with_interior_point(mask, clicks, mask.logits)

    def _with_interior_point(
        self, mask: PlaneMask, marked: ModelPoints, mask_logits: Tensor | None
    ) -> SinglePrompt:
        """The most interior point of `mask` away from the negative ones of the clicks `marked`, and all of those."""
        geometry = self.embeddings.geometry
        inside = mask.inside.copy()
        for row, column in self._mask_pixels([click for click in marked if not click[2]]):
            inside[row, column] = False
        row, column = interior_point(inside if inside.any() else mask.inside)
        x, y = geometry.mask_pixels_to_model(np.array([(column, row)]))[0]
        points = [(float(x), float(y), 1), *marked]
        return SinglePrompt(points, None, None if mask_logits is None else mask_logits.float(), self.label_id)

    def _model_box(self, prompt: SlicePrompt) -> list[float] | None:
        if prompt.box is None:
            return None
        edges = self.embeddings.geometry.boxes_to_model(np.array([prompt.box]))[0]
        return [float(edge) for edge in edges]

    def _model_points(self, prompt: SlicePrompt) -> ModelPoints:
        if not prompt.points:
            return []
        table = np.array(prompt.points)
        xy = self.embeddings.geometry.points_to_model(table[:, :2])
        return [(float(x), float(y), int(label)) for (x, y), label in zip(xy, table[:, 2], strict=True)]

    def _mask_pixels(self, points: ModelPoints) -> list[tuple[int, int]]:
        """(row, column) in a mask (m, m) of points in model pixels."""
        if not points:
            return []
        geometry = self.embeddings.geometry
        pixels = np.rint(geometry.model_to_mask_pixels(np.array([(x, y) for x, y, _ in points])))
        return [(int(row), int(column)) for column, row in pixels.clip(0, geometry.mask_size - 1)]

    def _empty(self, index: int) -> PlaneMask:
        size = self.embeddings.geometry.mask_size
        return PlaneMask(torch.full((size, size), -MASK_LOGIT), 1.0)

    def _plane_mask(self, index: int, logits: Tensor, iou: Tensor) -> PlaneMask:
        """With the annotator's clicks on this slice honoured, whatever the network made of them."""
        clicks = self._model_points(self.plan.prompts.get(index, SlicePrompt()))
        logits = honour_clicks(logits, clicks, self.embeddings.geometry)
        # In half precision: a conversation keeps many of them.
        return PlaneMask(logits.masked_fill(~self._allowed(index), -MASK_LOGIT).half(), float(iou))

    def _allowed(self, index: int) -> Tensor:
        """(m, m) bool: what lies in the slice, and in the window of a box that covers it."""
        window = self.plan.windows.get(index)
        if window not in self.allowed:
            self.allowed[window] = _window_at_mask_size(self.embeddings.geometry, window)
        return self.allowed[window]


def _visible(logits: Tensor) -> Tensor:
    """`logits` (m, m) of a mask that was sent; one too fine for any pixel to be mostly inside gets the fullest ones."""
    if logits.max() > 0:
        return logits
    share = (logits + MASK_LOGIT) / (2 * MASK_LOGIT)  # of each pixel that is inside
    return MASK_LOGIT * (2 * share / share.max() - 1)


def _nearest(planes: Mapping[int, PlaneMask], index: int) -> PlaneMask | None:
    """The mask of the slice nearest to `index`."""
    if not planes:
        return None
    return planes[min(planes, key=lambda other: (abs(other - index), other))]


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
