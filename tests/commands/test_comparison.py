"""Two versions on the same cases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.commands.comparison import ObjectScores, Subject, compare, pair_files, summarise
from lib.commands.evaluate import describe
from lib.embeddings import EmbeddingCache
from lib.errors import InputError, LabelError, MedsaError
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.settings import IntensitySettings
from lib.volume import Volume, save_mask


@pytest.fixture
def folders(tmp_path: Path, ellipsoid_case: Any) -> tuple[Path, Path]:
    """images/ with a and b, labels/ with a and c; all on one grid."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    volume, label = ellipsoid_case
    shown = np.clip(volume.array / 2, 0, 255).astype(np.uint8)
    for case in ("a", "b"):
        save_mask(shown, volume, images / f"{case}.nii.gz")
    for case in ("a", "c"):
        save_mask(label, volume, labels / f"{case}.nrrd")
    return images, labels


def predictor(model: MedSA) -> Predictor:
    return Predictor(model, "test", IntensitySettings(), "auto", EmbeddingCache(1 << 20))


def test_the_same_version_twice_has_the_same_scores(tiny_model: MedSA, folders: tuple[Path, Path]) -> None:
    subject = Subject(predictor(tiny_model), predictor(tiny_model), {"object": 1})
    seen: list[ObjectScores] = []
    with torch.random.fork_rng(devices=[]):
        (score,) = compare(subject, pair_files(*folders, None), clicks=3, report=seen.append)
    assert (score.case_id, score.label) == ("a", "object")
    assert score.before == score.after
    assert len(score.before) == 3
    assert seen == [score]


def test_a_label_on_another_grid_is_named(tiny_model: MedSA, folders: tuple[Path, Path]) -> None:
    images, labels = folders
    shifted = Volume(np.zeros((24, 20, 12), np.uint8), np.diag([1.0, 1.25, 2.5, 1.0]))
    save_mask(np.ones(shifted.shape_ijk, np.uint8), shifted, labels / "a.nrrd")
    subject = Subject(predictor(tiny_model), predictor(tiny_model), {"object": 1})
    with pytest.raises(LabelError, match="case a: the label's shape or affine differs"):
        compare(subject, pair_files(images, labels, None), clicks=1)


def test_cases_without_any_of_the_labels_are_no_comparison(
    tiny_model: MedSA, folders: tuple[Path, Path]
) -> None:
    subject = Subject(predictor(tiny_model), predictor(tiny_model), {"other": 2})
    with pytest.raises(MedsaError, match="no case holds any of the labels"):
        compare(subject, pair_files(*folders, None), clicks=1)


def test_images_and_labels_are_paired_by_name(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    assert pair_files(images, labels, None) == {"a": (images / "a.nii.gz", labels / "a.nrrd")}
    assert list(pair_files(images, labels, ["a"])) == ["a"]
    with pytest.raises(InputError, match="only: 'b'"):
        pair_files(images, labels, ["a", "b"])


def test_the_interval_counts_cases_and_not_objects() -> None:
    scores = [
        ObjectScores("a", "x", (0.2, 0.4), (0.4, 0.4)),
        ObjectScores("a", "y", (0.4, 0.4), (0.6, 0.4)),
        ObjectScores("b", "x", (0.5, 0.4), (0.6, 0.4)),
    ]
    first, second = summarise(scores, 2)
    assert first["before"] == pytest.approx(0.4)
    assert first["after"] == pytest.approx(0.55)
    assert first["difference"]["mean"] == pytest.approx(0.15)
    assert first["difference"]["low"] == pytest.approx(0.1)
    assert first["difference"]["high"] == pytest.approx(0.2)
    assert second["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_one_case_has_means_and_no_interval() -> None:
    (row,) = summarise([ObjectScores("a", "x", (0.2,), (0.5,))], 1)
    assert "difference" not in row
    assert describe(row, 0, 2) == "1 click(s): version 0 0.200, version 2 0.500"
