"""Scoring of a folder of cases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib.embeddings import EmbeddingCache
from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.scoring.scores import read_scores
from lib.scoring.uncertainty import ScoringTask, UncertaintyScoring
from lib.settings import IntensitySettings
from lib.volume import save_mask


class Store:
    """A datastore of image files, all unlabelled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_images(self) -> list[str]:
        return [path.name.split(".")[0] for path in self.folder.iterdir()]

    get_unlabeled_images = list_images

    def image_path(self, case: str) -> Path:
        return self.folder / f"{case}.nii.gz"


@pytest.fixture
def store(tmp_path: Path, ellipsoid_case: Any) -> Store:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b"):
        save_mask(ellipsoid_case.label * 200, ellipsoid_case.volume, folder / f"{name}.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"x")
    return Store(folder)


@pytest.fixture
def make_scoring(tmp_path: Path, tiny_model: MedSA) -> Callable[[int], UncertaintyScoring]:
    def make(version: int) -> UncertaintyScoring:
        predictor = Predictor(tiny_model, "key", IntensitySettings(), "auto", EmbeddingCache(1 << 24))
        served = Served("tiny", "a test", version, predictor)
        return UncertaintyScoring(ScoringTask(("object",), tmp_path / "scores.json", lambda: served))

    return make


def test_scores_all_and_names_the_bad_one(
    make_scoring: Callable[[int], UncertaintyScoring], store: Store, tmp_path: Path
) -> None:
    result = make_scoring(0)({}, store)
    assert result["scored"] == 2
    assert list(result["skipped"]) == ["broken"]
    table = read_scores(tmp_path / "scores.json")
    assert all(0 <= score <= 1 for score in table.values_by_case().values())
    assert set(table.values_by_case()) == {"a", "b"}
    assert "broken.nii.gz" in str(table.cases["broken"].error)


def test_scores_again_only_for_another_version(
    make_scoring: Callable[[int], UncertaintyScoring], store: Store
) -> None:
    make_scoring(0)({}, store)
    assert make_scoring(0)({}, store) == {"scored": 0, "skipped": {}}
    assert make_scoring(1)({}, store)["scored"] == 2


def test_forgets_images_that_are_gone(
    make_scoring: Callable[[int], UncertaintyScoring], store: Store, tmp_path: Path
) -> None:
    make_scoring(0)({}, store)
    store.image_path("b").unlink()
    make_scoring(1)({}, store)
    assert set(read_scores(tmp_path / "scores.json").cases) == {"a", "broken"}
