"""One case seen by one model, without a click: how sure it is, what it expects, and what the image is like."""

import io
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Study
from lib.scoring.measures import INSIDE, Probability, binary_entropy, entropy_of
from lib.scoring.scores import CaseScore, LabelScore
from lib.scoring.variations import instability, thinned
from lib.transforms.geometry import slice_axis
from lib.turns import Asker
from lib.volume import Volume

# Uncertainty changes little from slice to slice.
MAX_SLICES = 16
PICTURE_PIXELS = 192
OUTLINE, DOUBT = (0, 220, 120), np.array([255.0, 120.0, 0.0])


@dataclass(frozen=True)
class Surveyed:
    """What was found, and a `picture` (PNG) of the slice that is least sure."""

    score: CaseScore
    picture: bytes


class Surveyor:
    """Looks at cases with the model of `served`. `pause()` is called where it can wait for clicks."""

    def __init__(
        self, served: Served, labels: Sequence[str], pause: Callable[[], None] = lambda: None
    ) -> None:
        self.served, self._labels, self._pause = served, tuple(labels), pause
        self._thinned: tuple[MedSA, ...] | None = None

    def survey(self, volume: Volume) -> Surveyed:
        """All about one volume; the same every time."""
        started, predictor = time.perf_counter(), self.served.predictor
        if self._thinned is None:
            self._thinned = thinned(predictor.model)
        axis = slice_axis(volume.spacing_mm, predictor.slice_axis, volume.shape_ijk)
        stride = max(1, volume.shape_ijk[axis] // MAX_SLICES)
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
            embedding_of(study),
            study.slices[row],
            round(time.perf_counter() - started, 3),
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
        if self.served.predictor.model.trained:
            prompt = self.served.predictor.automatic_prompt(label)
            varied = instability(study, prompt, answers, self._thinned or (), rng)
        volume_mm3 = float(answers.sum(dtype=np.float64)) * _pixel_mm(study) ** 2 * step_mm
        return LabelScore(
            round(entropy.inside, 5), round(entropy.border, 5), round(varied, 5), round(volume_mm3, 1)
        )


def embedding_of(study: Study) -> NDArray[np.float32]:
    """What the image is like (256,): the encoder's features, averaged over the part of the slices that is image."""
    geometry, features = study.embeddings.geometry, study.features
    width, height = (
        max(1, round(features.shape[-1] * part / geometry.image_size)) for part in geometry.content_xy
    )
    return features[:, :, :height, :width].mean(dim=(0, 2, 3)).float().cpu().numpy()


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
    picture.quantize(64).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _least_sure(answers: Sequence[Probability]) -> int:
    """The slice with most entropy; where there is none, the middle one."""
    bits = np.sum([binary_entropy(one).sum(axis=(1, 2)) for one in answers], axis=0)
    return int(bits.argmax()) if bits.max() > 0 else len(bits) // 2


def _shrunk(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(inside, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _pixel_mm(study: Study) -> float:
    """The side of a mask's pixel."""
    geometry = study.embeddings.geometry
    extents = [n * spacing for n, spacing in zip(geometry.size_uv, geometry.spacing_uv, strict=True)]
    return max(extents) / geometry.mask_size
