"""One case seen by one model, without a click: how sure it is, what it expects, and what the image is like."""

import hashlib
import io
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Study
from lib.scoring.measures import INSIDE, Probability, binary_entropy, entropy_of
from lib.scoring.scores import CaseScore, LabelScore, Stamp
from lib.scoring.variations import instability, thinned
from lib.training.slabs import SMALLEST_GRID
from lib.transforms.geometry import slice_axis
from lib.turns import Asker
from lib.volume import Volume

# Uncertainty changes little from slice to slice, and what an image is like even less.
MAX_SLICES, DESCRIBED_SLICES = 16, 8
PICTURE_PIXELS = 192
Embedding = NDArray[np.float32]
OUTLINE, DOUBT = (0, 220, 120), np.array([255.0, 120.0, 0.0])


@dataclass(frozen=True)
class Surveyed:
    """What was found, and a `picture` (PNG) of the slice that is least sure."""

    score: CaseScore
    picture: bytes


class Surveyor:
    """Looks at cases with the model of `served`. `pause()` is called where it can wait for clicks.

    Images are described by the base alone, always at one image size: embeddings made under different versions can be
    compared, and one that is known is not made again. Without being `varied`, disagreement is 0.
    """

    def __init__(
        self,
        served: Served,
        labels: Sequence[str],
        pause: Callable[[], None] = lambda: None,
        *,
        varied: bool = True,
    ) -> None:
        self.served, self._labels, self._pause, self._is_varied = served, tuple(labels), pause, varied
        self.stamp = stamp_of(served, labels)
        self._thinned: tuple[MedSA, ...] | None = None
        self._plain: MedSA | None = None

    def survey(self, volume: Volume, embedding: Embedding | None = None) -> Surveyed:
        """All about one volume; the same every time. `embedding` is what an earlier survey of it found."""
        started, predictor = time.perf_counter(), self.served.predictor
        if self._thinned is None or self._plain is None:
            self._thinned = thinned(predictor.model) if self._is_varied else ()
            self._plain = plain_network(predictor.model)
        axis = slice_axis(volume.spacing_mm, predictor.slice_axis, volume.shape_ijk)
        stride = -(-volume.shape_ijk[axis] // MAX_SLICES)
        with predictor.study(volume, stride, Asker("scoring", background=True), self._pause) as study:
            answers = {label: self._answers(study, label) for label in self._labels}
            rng = np.random.default_rng(zlib.crc32(volume.content_key.encode()))
            step_mm = stride * volume.spacing_mm[axis]
            scores = {
                label: self._label_score(study, label, answers[label], step_mm, rng) for label in self._labels
            }
            row = _least_sure(list(answers.values()))
            picture = draw_picture(
                study.planes(study.slices[row])[0], [one[row] for one in answers.values()], study
            )
        score = CaseScore(
            self.served.base,
            self.served.adapter_version,
            scores,
            embedding_of(study, self._plain) if embedding is None else embedding,
            study.slices[row],
            round(time.perf_counter() - started, 3),
            model=self.stamp.model,
            view=self.stamp.view,
        )
        return Surveyed(score, picture)

    def _answers(self, study: Study, label: str) -> Probability:
        self._pause()
        prompt = self.served.predictor.automatic_prompt(label)
        return study.probability(study.features, [prompt] * len(study.slices))

    def _label_score(
        self, study: Study, label: str, answers: Probability, step_mm: float, rng: np.random.Generator
    ) -> LabelScore:
        self._pause()
        entropy = entropy_of(answers)
        # Without training a label's name says nothing, and so do answers to it.
        varied = 0.0
        if self._is_varied and self.served.predictor.model.trained:
            prompt = self.served.predictor.automatic_prompt(label)
            varied = instability(study, prompt, answers, self._thinned or (), rng)
        volume_mm3 = float(answers.sum(dtype=np.float64)) * _pixel_mm(study) ** 2 * step_mm
        return LabelScore(
            round(entropy.inside, 5), round(entropy.border, 5), round(varied, 5), round(volume_mm3, 1)
        )


def stamp_of(served: Served, labels: Sequence[str]) -> Stamp:
    """What the scores of `labels` by `served` are by."""
    predictor = served.predictor
    shown = f"{served.base} {served.base_sha256} {predictor.intensity!r} {predictor.slice_axis}"
    size = predictor.model.spec.image_size  # embeddings are made at the smallest one, whatever it is
    said = f"{shown} {size} {predictor.model_key} {served.adapter_version} {sorted(labels)}"
    return Stamp(_digest(said), _digest(shown))


def plain_network(model: MedSA) -> MedSA:
    """The base of `model` alone, at the smallest image size."""
    plain = model.sibling()
    size = SMALLEST_GRID * model.spec.patch_size
    return (plain if model.spec.image_size <= size else plain.at_size(size)).eval()


def embedding_of(study: Study, plain: MedSA) -> Embedding:
    """What the image is like (256,): features of the base, averaged over the part of some slices that is image."""
    spec = plain.spec
    geometry = replace(study.embeddings.geometry, image_size=spec.image_size, mask_size=spec.mask_size)
    places = (
        np.linspace(0, len(study.slices) - 1, min(DESCRIBED_SLICES, len(study.slices))).round().astype(int)
    )
    planes = np.concatenate([study.planes(study.slices[place]) for place in places])
    device = study.features.device
    shown = geometry.planes_to_model(torch.from_numpy(planes).to(device))
    with torch.inference_mode():
        features = plain.encode(shown).float()
    width, height = (max(1, round(spec.grid * part / spec.image_size)) for part in geometry.content_xy)
    found: Embedding = features[:, :, :height, :width].mean(dim=(0, 2, 3)).cpu().numpy()
    return found


def draw_picture(plane: NDArray[np.float32], answers: Sequence[Probability], study: Study) -> bytes:
    """A slice in grey, the outlines of what is predicted in green, and orange where the model is not sure: PNG."""
    grey = plane if plane.ndim == 3 else np.repeat(plane[..., None], 3, axis=-1)
    voxels = study.embeddings.geometry.logits_to_voxels(torch.from_numpy(np.stack(answers))).numpy()
    doubt = binary_entropy(voxels).max(axis=0)[..., None]
    image = grey * (1.0 - 0.6 * doubt) + DOUBT * 0.6 * doubt
    for inside in voxels >= INSIDE:
        image[inside & ~_shrunk(inside)] = OUTLINE
    picture = Image.fromarray(np.ascontiguousarray(image.clip(0, 255).astype(np.uint8).swapaxes(0, 1)))
    u_mm, v_mm = (
        count * spacing
        for count, spacing in zip(
            study.embeddings.geometry.size_uv, study.embeddings.geometry.spacing_uv, strict=True
        )
    )
    scale = PICTURE_PIXELS / max(u_mm, v_mm)
    picture = picture.resize(
        (max(1, round(u_mm * scale)), max(1, round(v_mm * scale))), Image.Resampling.BILINEAR
    )
    stream = io.BytesIO()
    # Choosing the colours by median cut took a tenth of the whole survey of a small image.
    picture.quantize(256, method=Image.Quantize.FASTOCTREE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _least_sure(answers: Sequence[Probability]) -> int:
    """The slice with most entropy."""
    return int(np.sum([binary_entropy(one).sum(axis=(1, 2)) for one in answers], axis=0).argmax())


def _shrunk(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(inside, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _pixel_mm(study: Study) -> float:
    """The side of a mask's pixel."""
    geometry = study.embeddings.geometry
    extents = [n * spacing for n, spacing in zip(geometry.size_uv, geometry.spacing_uv, strict=True)]
    return max(extents) / geometry.mask_size
