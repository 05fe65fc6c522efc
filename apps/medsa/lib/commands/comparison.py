"""Compares two adapter versions on cases with a known label, with the same simulated annotator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lib.bases import torch_device
from lib.commands.truth import find_cases, load_truth
from lib.embeddings import EmbeddingCache
from lib.errors import InputError, LabelError, MedsaError
from lib.evaluation.bootstrap import paired_bootstrap
from lib.evaluation.simulated_user import annotate
from lib.model.adapter_io import adapted
from lib.predictor import Predictor
from lib.prompts.promptset import PromptSet
from lib.server.parts import Parts
from lib.transforms.geometry import slice_axis
from lib.volume import AFFINE_TOLERANCE_MM, Volume, load_volume

LAST = "last"
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class ObjectScores:
    """Volume Dice of one object after 1, 2, .. clicks under two versions.

    The first click is the same for both; later ones correct each version's own error.
    """

    case_id: str
    label: str
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class Subject:
    """What is compared: two predictors of one task."""

    before: Predictor
    after: Predictor
    labels: Mapping[str, int]


def load_predictor(parts: Parts, version: int) -> Predictor:
    """The base with that version's adapter (0: none).

    Raises NotFoundError for an unknown version, CheckpointError or AdapterError when it cannot be loaded.
    """
    task, serving = parts.settings.task, parts.settings.serving
    release = parts.releases.release(version)
    model, sha256 = parts.build_model()
    if release is not None:
        model = adapted(release.folder, model, sha256, task.labels)
    cache = EmbeddingCache(serving.embedding_cache_mb << 20)
    return Predictor(
        model, f"{sha256}:{version}", task.intensity, task.slice_axis, cache, torch_device(serving)
    )


def version_number(parts: Parts, text: str) -> int:
    """`last` is the newest version, anything else the number of one; raises InputError or NotFoundError."""
    if text == LAST:
        return parts.releases.versions()[-1]
    if not text.isdigit():
        raise InputError("version", text, f"a number or {LAST}")
    parts.releases.release(int(text))
    return int(text)


def pair_files(images: Path, labels: Path, only: Sequence[str] | None) -> dict[str, tuple[Path, Path]]:
    """Image and label file by case id, for all images that have a label or for those in `only`."""
    image_files, label_files = find_cases(images), find_cases(labels)
    both = {case: (path, label_files[case]) for case, path in image_files.items() if case in label_files}
    if only is None:
        return both
    lacking = [case for case in only if case not in both]
    if lacking:
        raise InputError("only", lacking[0], "cases that have an image and a label")
    return {case: both[case] for case in only}


def compare(
    subject: Subject,
    files: Mapping[str, tuple[Path, Path]],
    clicks: int,
    merge: str | None = None,
    report: Callable[[ObjectScores], None] = lambda scores: None,
) -> list[ObjectScores]:
    """The scores of every object of every case. Raises MedsaError for a case that does not fit."""
    if clicks < 1:
        raise InputError("clicks", clicks, "at least 1")
    found: list[ObjectScores] = []
    for case_id, (image_file, label_file) in files.items():
        volume = load_volume(image_file)
        truth = load_truth(label_file, subject.labels, merge)
        _check_grid(case_id, volume, truth.grid)
        for name, mask in truth.objects(subject.labels).items():
            before, after = (
                _curve(predictor, volume, mask, clicks, name) for predictor in (subject.before, subject.after)
            )
            found.append(ObjectScores(case_id, name, before, after))
            report(found[-1])
    if not found:
        raise MedsaError("no case holds any of the labels")
    return found


def summarise(scores: Sequence[ObjectScores], clicks: int) -> list[dict[str, Any]]:
    """Per number of clicks: the mean over cases before and after, and the difference with its interval."""
    rows = []
    for index in range(clicks):
        before, after = (_by_case(scores, side, index) for side in ("before", "after"))
        row: dict[str, Any] = {"clicks": index + 1, "before": fmean(before), "after": fmean(after)}
        if len(before) > 1:
            row["difference"] = asdict(paired_bootstrap(before, after, BOOTSTRAP_SEED))
        rows.append(row)
    return rows


def _check_grid(case_id: str, volume: Volume, grid: Volume) -> None:
    if volume.shape_ijk != grid.shape_ijk or np.abs(volume.affine - grid.affine).max() > AFFINE_TOLERANCE_MM:
        raise LabelError(f"case {case_id}: the label's shape or affine differs from its image's")


def _curve(
    predictor: Predictor, volume: Volume, mask: np.ndarray, clicks: int, label: str
) -> tuple[float, ...]:
    def predict(prompts: PromptSet) -> np.ndarray:
        return predictor.predict(volume, prompts).mask

    axis = slice_axis(volume.spacing_mm, predictor.slice_axis, volume.shape_ijk)
    dice = [result.dice for result in annotate(predict, mask, clicks, axis, volume.spacing_mm, label)]
    # Where nothing was left to correct, the last mask stays.
    return tuple(dice + [dice[-1]] * (clicks - len(dice)))


def _by_case(scores: Sequence[ObjectScores], side: str, index: int) -> list[float]:
    """One value per case, the mean over its objects: objects of one case are no independent samples."""
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.case_id, []).append(getattr(score, side)[index])
    return [fmean(objects) for objects in values.values()]
