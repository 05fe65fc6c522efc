"""Scoring of a folder of cases, by one process and by several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.embeddings import EmbeddingCache
from lib.errors import PacsError
from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.scoring.scores import ScoreFolder
from lib.scoring.scoring_method import MedsaScoring, ScoringTask
from lib.scoring.survey import Surveyor
from lib.scoring.sweep import Shard, sweep, to_score
from lib.settings import IntensitySettings
from lib.volume import save_mask


class Store:
    """A datastore of image files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labelled: set[str] = set()
        self.away: set[str] = set()

    def list_images(self) -> list[str]:
        return [path.name.split(".")[0] for path in self.folder.iterdir()]

    def get_unlabeled_images(self) -> list[str]:
        return [case for case in self.list_images() if case not in self.labelled]

    def image_path(self, case: str) -> Path:
        if case in self.away:
            raise PacsError("the PACS cannot be reached")
        return self.folder / f"{case}.nii.gz"


@pytest.fixture
def store(tmp_path: Path, ellipsoid_case: Any) -> Store:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b", "c"):
        save_mask(ellipsoid_case.label * 200, ellipsoid_case.volume, folder / f"{name}.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"x")
    return Store(folder)


@pytest.fixture
def served(tiny_model: MedSA) -> Callable[[int], Served]:
    def make(version: int) -> Served:
        predictor = Predictor(tiny_model, "key", IntensitySettings(), "auto", EmbeddingCache(1 << 24))
        return Served("tiny", "a test", version, predictor)

    return make


@pytest.fixture
def scores(tmp_path: Path) -> ScoreFolder:
    return ScoreFolder(tmp_path / "scores")


@pytest.fixture
def scoring(
    served: Callable[[int], Served], scores: ScoreFolder, tmp_path: Path
) -> Callable[[int], MedsaScoring]:
    return lambda version: MedsaScoring(ScoringTask(("object",), scores, tmp_path, lambda: served(version)))


def test_scores_all_and_names_the_bad_one(
    scoring: Callable[[int], MedsaScoring], store: Store, scores: ScoreFolder
) -> None:
    result = scoring(0)({}, store)
    assert result["scored"] == 3
    assert list(result["skipped"]) == ["broken"]
    table = scores.table()
    assert "broken.nii.gz" in str(table.cases["broken"].error)
    assert {case for case, entry in table.cases.items() if entry.error is None} == {"a", "b", "c"}
    assert all(scores.picture(case).read_bytes().startswith(b"\x89PNG") for case in "abc")


def test_scores_again_only_for_another_version(scoring: Callable[[int], MedsaScoring], store: Store) -> None:
    scoring(0)({}, store)
    assert scoring(0)({}, store) == {"scored": 0, "skipped": {}}
    assert scoring(1)({}, store)["scored"] == 3


def test_forgets_images_that_are_gone(
    scoring: Callable[[int], MedsaScoring], store: Store, scores: ScoreFolder
) -> None:
    scoring(0)({}, store)
    store.image_path("b").unlink()
    scoring(1)({}, store)
    assert set(scores.table().cases) == {"a", "c", "broken"}


def test_a_labelled_case_is_looked_at_once_and_soon(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder
) -> None:
    store.labelled = {"a"}
    assert to_score(store, scores, served(0))[1] == "a"
    assert len(list(sweep(store, scores, Surveyor(served(0), ["object"])))) == 4
    assert "a" not in to_score(store, scores, served(1))
    assert scores.table().cases["a"].embedding.size


def test_an_image_is_described_alike_by_all_versions_and_only_once(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(sweep(store, scores, Surveyor(served(0), ["object"])))
    first = scores.table().cases["a"]
    monkeypatch.setattr("lib.scoring.survey.embedding_of", None)
    list(sweep(store, scores, Surveyor(served(1), ["object"])))
    second = scores.table().cases["a"]
    assert (first.adapter_version, second.adapter_version) == (0, 1)
    assert np.array_equal(first.embedding, second.embedding)


def test_what_somebody_else_has_scored_meanwhile_is_not_done_again(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder
) -> None:
    one, other = (sweep(store, scores, Surveyor(served(0), ["object"])) for _ in range(2))
    done = [next(one).case, next(other).case, *(step.case for step in one), *(step.case for step in other)]
    assert sorted(done) == ["a", "b", "broken", "c"]


def test_whatever_goes_wrong_with_one_case_the_others_are_scored(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder
) -> None:
    class Failing(Surveyor):
        calls = 0

        def survey(self, *given: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("out of memory at /some/path")
            return super().survey(*given)

    (store.folder / "broken.nii.gz").unlink()
    problems = [step.problem for step in sweep(store, scores, Failing(served(0), ["object"]))]
    assert problems == ["RuntimeError", None, None]
    assert to_score(store, scores, served(0)) == []


def test_scoring_ends_when_another_version_serves(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder, tmp_path: Path
) -> None:
    version = [0]

    def serving() -> Served:
        if len(scores.table().cases) == 2:
            version[0] = 1
        return served(version[0])

    result = MedsaScoring(ScoringTask(("object",), scores, tmp_path, serving))({}, store)
    assert result["scored"] + len(result["skipped"]) == 2


def test_a_case_that_the_pacs_does_not_give_now_is_tried_another_time(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder
) -> None:
    store.away = {"a"}
    problems = {step.case: step.problem for step in sweep(store, scores, Surveyor(served(0), ["object"]))}
    assert problems["a"] == "the PACS cannot be reached"
    assert to_score(store, scores, served(0)) == ["a"]


def test_several_share_the_work_and_one_that_was_stopped_goes_on(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder
) -> None:
    surveyor = Surveyor(served(0), ["object"])
    stopped = sweep(store, scores, surveyor, should_stop=lambda: len(scores.table().cases) == 1)
    assert len(list(stopped)) == 1
    done = [
        step.case
        for shard in range(2)
        for step in sweep(store, ScoreFolder(scores.path, shard), surveyor, Shard(shard, 2))
    ]
    assert len(done) == len(set(done)) == 3
    assert set(scores.table().cases) == set(store.list_images())
    assert list(sweep(store, scores, surveyor)) == []


def test_nothing_to_do(served: Callable[[int], Served], scores: ScoreFolder, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert list(sweep(Store(tmp_path / "none"), scores, Surveyor(served(0), ["object"]))) == []
