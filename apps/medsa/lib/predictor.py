"""From prompts on a volume to a mask on its voxel grid.

Concurrency. A Predictor may be used from several threads. Shared between them: the model, used only by the thread
that holds the device's turn (`lib/turns.py`), and two memories that guard themselves, the embedding cache and the
conversations. A request holds the turn for all its work with the model and gives way between chunks of slices to
encode; it does not hold it while voxels are read, rescaled or written. No other lock is held while a turn is awaited.

What was answered earlier in the same conversation counts: a correction changes the answer that the annotator saw.
The same conversation always gives the same answers.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.conversation import Conversations, Earlier, Topic
from lib.embeddings import EmbeddingCache, SliceEncoder, VolumeEmbeddings
from lib.errors import NotFoundError
from lib.model.medsa import Masks, MedSA, PlanePrompts, SinglePrompt
from lib.object_query import ObjectQuery
from lib.prompts.promptset import PromptSet, Voxel
from lib.prompts.slice_plan import SlicePlan, plan_slices
from lib.propagation import PlaneMask
from lib.settings import IntensitySettings
from lib.transforms.geometry import AxisChoice, split_point
from lib.turns import Asker, DeviceTurns, Turn
from lib.volume import Volume
from lib.voxels import MaskArray, labels_to_voxels, mask_to_voxels

# Slices decoded at once: more are no faster on a CPU, and what a request takes must not grow with the volume.
DECODE_BATCH = 8
Planes = Mapping[int, PlaneMask]


@dataclass(frozen=True)
class Prediction:
    """A mask (i, j, k), 0 or 1, on the volume's grid.

    `slices` are those that were answered, in order along the slice axis; `quality` is the IoU the model
    predicts for each; `seconds` were spent in "wait" (for the device), "encode", "decode" and in "total".
    """

    mask: MaskArray
    slices: tuple[int, ...]
    quality: dict[int, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class ObjectSlices:
    """Where one label was found: `slices` in order, and the IoU the model predicts for each."""

    slices: tuple[int, ...]
    quality: dict[int, float]


@dataclass(frozen=True)
class LabelPrediction:
    """A mask (i, j, k) of 0 and 1 + the label's place in `objects`, on the volume's grid."""

    mask: MaskArray
    objects: dict[str, ObjectSlices]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Study:
    """The slices `slices` of one volume in hand, to ask the model about them in other ways than people do.

    `features` (n, 256, g, g) are their embeddings. What is in the planes that `encode` takes is up to the caller.
    """

    slices: tuple[int, ...]
    features: Tensor
    embeddings: VolumeEmbeddings
    predictor: "Predictor"

    def probability(
        self, features: Tensor, prompts: Sequence[SinglePrompt], model: MedSA | None = None
    ) -> NDArray[np.float32]:
        """The one answer (n, m, m) to each clear prompt on `features` (n, 256, g, g); by another `model` if given."""
        parts = [
            self.predictor.decode(
                features[start : start + DECODE_BATCH], prompts[start : start + DECODE_BATCH], model
            )
            for start in range(0, len(prompts), DECODE_BATCH)
        ]
        probability: NDArray[np.float32] = torch.cat([part.logits[:, 0] for part in parts]).sigmoid().numpy()
        return probability

    def planes(self, index: int) -> NDArray[np.float32]:
        """Slice `index` as the model is shown it, 0 to 255: (1, n_u, n_v), in colour (1, n_u, n_v, 3)."""
        return self.embeddings.scaled_planes([index])

    def encode(self, planes: NDArray[np.float32]) -> Tensor:
        """Embeddings of planes like those, each by itself, without neighbours."""
        return self.embeddings.encode_alone(planes)


@dataclass
class _Work:
    """What one request uses: the volume's embeddings, the turn while it is held, and the time spent."""

    embeddings: VolumeEmbeddings
    asker: Asker
    started: float = field(default_factory=time.perf_counter)
    decode_seconds: float = 0.0
    wait_seconds: float = 0.0

    def seconds(self) -> dict[str, float]:
        """By stage."""
        return {
            "wait": self.wait_seconds,
            "encode": self.embeddings.encode_seconds,
            "decode": self.decode_seconds,
            "total": time.perf_counter() - self.started,
        }


class Predictor:
    """Answers prompts with one model. `model_key` names model and adapter version in the embedding cache.

    Moves the model to `device` and into evaluation mode. `slice_axis` is "auto", "i", "j" or "k". Predictors on one
    device share its `turns`.
    """

    def __init__(
        self,
        model: MedSA,
        model_key: str,
        intensity: IntensitySettings,
        slice_axis: AxisChoice,
        cache: EmbeddingCache,
        device: str = "cpu",
        turns: DeviceTurns | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.model_key, self.intensity, self.slice_axis = model_key, intensity, slice_axis
        self._turns = turns or DeviceTurns()
        self._conversations = Conversations()
        self._encoder = SliceEncoder(model, model_key, intensity, cache, self.device)

    def predict(
        self,
        volume: Volume,
        prompts: PromptSet,
        *,
        whole_object: bool = True,
        only_slice: int | None = None,
        asker: Asker | None = None,
    ) -> Prediction:
        """The object that `prompts` mark in `volume`.

        With `whole_object` False on the marked slices alone, of those with `only_slice` on that one. A slice with a
        positive click or a box's middle slice starts the object; it is then carried from slice to slice until it ends.
        A negative click trims the slice it is on, or ends the object there. An empty mask is a legal answer.

        Prompts that add to those of an earlier request of the same client correct the earlier answer: slices far from
        the new clicks stay as they were. Raises BusyError and ClientGoneError as `DeviceTurns.turn` does.
        """
        work = self._begin(volume, asker)
        with self._turn(work) as turn:
            found, plan = self._object(work, turn, prompts, whole_object, only_slice)
        mask = mask_to_voxels(found, work.embeddings, plan)
        slices = tuple(sorted(found))
        return Prediction(
            mask, slices, {index: found[index].predicted_iou for index in slices}, work.seconds()
        )

    def predict_labels(
        self, volume: Volume, by_label: Mapping[str, PromptSet], *, asker: Asker | None = None
    ) -> LabelPrediction:
        """All objects at once, each from its own prompts; where two claim a voxel the more confident one gets it."""
        work = self._begin(volume, asker)
        clicked = {label: frozenset(prompts.positive_ijk) for label, prompts in by_label.items()}
        with self._turn(work) as turn:
            found = {
                label: self._object(
                    work,
                    turn,
                    prompts,
                    others=frozenset().union(*(clicked[other] for other in by_label if other != label)),
                )
                for label, prompts in by_label.items()
            }
        return _labelled(found, work)

    def automatic_labels(
        self, volume: Volume, labels: Sequence[str], *, asker: Asker | None = None
    ) -> LabelPrediction:
        """What the model sees without any click, of every label. Raises NotFoundError for one it does not have."""
        work = self._begin(volume, asker)
        everything = range(work.embeddings.slice_count)
        plan = SlicePlan({}, everything, {})
        with self._turn(work) as turn:
            found = {label: (self._automatic_planes(work, turn, label, everything), plan) for label in labels}
        return _labelled(found, work)

    @contextmanager
    def study(
        self, volume: Volume, stride: int, asker: Asker, pause: Callable[[], None] = lambda: None
    ) -> Iterator[Study]:
        """Every `stride`-th slice of `volume` in hand, and the device's turn as long as the block lasts.

        `pause()` is called before each chunk of slices that may have to be encoded.
        """
        work = self._begin(volume, asker)
        slices = tuple(range(0, work.embeddings.slice_count, stride))
        with self._turn(work) as turn:
            features = []
            for start in range(0, len(slices), DECODE_BATCH):
                pause()
                features.append(work.embeddings.fetch(slices[start : start + DECODE_BATCH], turn))
            yield Study(slices, torch.cat(features), work.embeddings, self)

    def automatic_prompt(self, label: str) -> SinglePrompt:
        """`label`'s own token, which says nothing where no adapter is trained. Raises NotFoundError."""
        return SinglePrompt(label_id=self._label_id(label))

    def automatic_mask(self, volume: Volume, label: str) -> MaskArray:
        """The same for every slice, as a mask (i, j, k), 0 or 1, on the volume's grid."""
        return self.automatic_labels(volume, [label]).mask

    def warmed(self, volume: Volume) -> tuple[int, int]:
        """(slices whose embeddings are there, slices in all)."""
        embeddings = self._encoder.open(volume, self.slice_axis)
        count = embeddings.slice_count
        return count - len(embeddings.missing(range(count))), count

    def warm(
        self, volume: Volume, near: int | None, asker: Asker, still: Callable[[], bool] = lambda: True
    ) -> None:
        """Encodes what is missing of `volume`, the slices nearest to `near` (None: the middle) first.

        One turn for each chunk, so that clicks come in between; ends early when `still()` does not hold any more, and
        when the cache is too small to keep what was encoded.
        """
        embeddings = self._encoder.open(volume, self.slice_axis)
        embeddings.prepare()
        centre = embeddings.slice_count // 2 if near is None else near
        nearest = sorted(range(embeddings.slice_count), key=lambda index: abs(index - centre))
        for place, index in enumerate(nearest):
            if not embeddings.missing([index]):
                continue
            # Where nearer slices have been pushed out again, those farther away would push out more of them.
            if not still() or embeddings.missing(nearest[:place]):
                break
            with self._turns.turn(asker) as turn:
                embeddings.fetch([index], turn)

    def decode(
        self, embeddings: Tensor, prompts: Sequence[SinglePrompt], model: MedSA | None = None
    ) -> Masks:
        """All masks of each prompt from embeddings (P, 256, g, g), one a prompt; float32, on the CPU.

        By the predictor's own model, or by another one with the same encoder. The caller holds the device's turn, or is
        alone.
        """
        stacked = PlanePrompts.stack(prompts).to(self.device)
        with torch.inference_mode():
            masks = (model or self.model).decode(embeddings, stacked)
            return Masks(masks.logits.float().cpu(), masks.iou.float().cpu())

    def _begin(self, volume: Volume, asker: Asker | None) -> _Work:
        return _Work(self._encoder.open(volume, self.slice_axis), asker or Asker())

    @contextmanager
    def _turn(self, work: _Work) -> Iterator[Turn]:
        work.embeddings.prepare()
        with self._turns.turn(work.asker) as turn:
            yield turn
            work.wait_seconds = turn.waited_s

    def _object(
        self,
        work: _Work,
        turn: Turn,
        prompts: PromptSet,
        whole_object: bool = True,
        only_slice: int | None = None,
        others: frozenset[Voxel] = frozenset(),
    ) -> tuple[Planes, SlicePlan]:
        """The masks of the slices that hold the object, and the plan that they follow; `others` are other objects."""
        volume, axis = work.embeddings.volume, work.embeddings.axis
        scope = "object" if whole_object else f"slice {only_slice}"
        topic = Topic(work.asker.client, volume.content_key, self.model_key, axis, prompts.label, scope)
        plan = plan_slices(prompts, axis, volume.shape_ijk)
        if only_slice is not None:
            plan = plan.only(only_slice)
        earlier = self._conversations.recall(topic, prompts)
        query = self._query(work, turn, plan, prompts, others)
        planes = self._answer(query, earlier, prompts, whole_object)
        self._conversations.remember(topic, Earlier(prompts, planes))
        return planes, plan

    def _answer(
        self, query: ObjectQuery, earlier: Earlier | None, prompts: PromptSet, whole_object: bool
    ) -> Planes:
        if earlier is None and prompts.mask is not None:
            earlier = _as_earlier(prompts, query)
            if not query.plan.prompts:
                return query.refined(earlier.planes)
        if earlier is None or not any(plane.area for plane in earlier.planes.values()):
            return query.found(whole_object)
        changed = query.plan.changed_since(earlier.prompts, query.embeddings.axis)
        return query.corrected(earlier.planes, changed, whole_object) if changed else earlier.planes

    def _query(
        self, work: _Work, turn: Turn, plan: SlicePlan, prompts: PromptSet, others: frozenset[Voxel]
    ) -> ObjectQuery:
        def decode(indices: Sequence[int], asked: Sequence[SinglePrompt]) -> Masks:
            return _joined(
                self._decode_batch(
                    work, turn, indices[start : start + DECODE_BATCH], asked[start : start + DECODE_BATCH]
                )
                for start in range(0, len(indices), DECODE_BATCH)
            )

        axis = work.embeddings.axis
        places = frozenset((index, *uv) for index, uv in (split_point(point, axis) for point in others))
        return ObjectQuery(
            work.embeddings, plan, self._label_id(prompts.label), self.model.trained, decode, places
        )

    def _automatic_planes(self, work: _Work, turn: Turn, label: str, slices: range) -> Planes:
        masks = self._automatic_masks(work, turn, label, slices)
        shown = {
            # A copy: a view would keep the slices without the label, too.
            index: PlaneMask(masks.logits[row, 0].clone(), float(masks.iou[row, 0]))
            for row, index in enumerate(slices)
        }
        return {index: plane for index, plane in shown.items() if plane.area}

    def _automatic_masks(self, work: _Work, turn: Turn, label: str, slices: range) -> Masks:
        """Of each slice the one mask (n, 1, m, m) that answers a clear prompt."""
        prompt = self.automatic_prompt(label)
        batches = (slices[start : start + DECODE_BATCH] for start in range(0, len(slices), DECODE_BATCH))
        decoded = (self._decode_batch(work, turn, batch, [prompt] * len(batch)) for batch in batches)
        return _joined(Masks(masks.logits[:, :1].clone(), masks.iou[:, :1].clone()) for masks in decoded)

    def _decode_batch(
        self, work: _Work, turn: Turn, indices: Sequence[int], asked: Sequence[SinglePrompt]
    ) -> Masks:
        features = work.embeddings.fetch(indices, turn)
        turn.tell()
        started = time.perf_counter()
        masks = self.decode(features, asked)
        work.decode_seconds += time.perf_counter() - started
        turn.tell()
        return masks

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


def _as_earlier(prompts: PromptSet, query: ObjectQuery) -> Earlier:
    """A mask that was sent, as if it had been answered to no click and no box."""
    bare = replace(prompts, positive_ijk=(), negative_ijk=(), boxes=())
    return Earlier(bare, query.given_planes(prompts))


def _joined(batches: Iterable[Masks]) -> Masks:
    parts = list(batches)
    return Masks(torch.cat([part.logits for part in parts]), torch.cat([part.iou for part in parts]))


def _labelled(found: Mapping[str, tuple[Planes, SlicePlan]], work: _Work) -> LabelPrediction:
    mask = labels_to_voxels(list(found.values()), work.embeddings)
    objects = {
        label: ObjectSlices(
            tuple(sorted(planes)), {index: planes[index].predicted_iou for index in sorted(planes)}
        )
        for label, (planes, _) in found.items()
    }
    return LabelPrediction(mask, objects, work.seconds())
