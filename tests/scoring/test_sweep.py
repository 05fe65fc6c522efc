"""Scoring of a folder of cases, by one process and by several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib import volume
from lib.embeddings import EmbeddingCache
from lib.errors import PacsError, PacsUnreachableError
from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.scoring.scores import MOST_TRIES, ScoreFolder, Stamp
from lib.scoring.scoring_method import MedsaScoring, ScoringTask
from lib.scoring.survey import Surveyor, stamp_of
from lib.scoring.sweep import LIST_SECONDS, MOST_UNREACHABLE, Shard, sweep, to_score
from lib.settings import IntensitySettings
from lib.training.clicks_first import ClicksFirst
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

    def image_signature(self, case: str) -> str:
        return self.image_signatures().get(case, "")

    def image_signatures(self) -> dict[str, str]:
        return {path.name.split(".")[0]: str(path.stat().st_mtime_ns) for path in self.folder.iterdir()}


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
    assert to_score(store, scores, stamp_of(served(0), ["object"]))[1] == "a"
    assert len(list(sweep(store, scores, Surveyor(served(0), ["object"])))) == 4
    assert "a" not in to_score(store, scores, stamp_of(served(1), ["object"]))
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
    problems = {step.case: step.problem for step in sweep(store, scores, Failing(served(0), ["object"]))}
    assert sorted(problems.values(), key=str) == [None, None, "RuntimeError"]
    # What went wrong may be over: it is tried again, but not for ever.
    (failed,) = to_score(store, scores, stamp_of(served(0), ["object"]))
    assert problems[failed] == "RuntimeError"
    for _ in range(MOST_TRIES - 1):
        assert [step.case for step in sweep(store, scores, Failing(served(0), ["object"]))] == [failed]
    assert to_score(store, scores, stamp_of(served(0), ["object"])) == []


def test_what_an_image_is_like_stays_known_where_a_later_look_fails(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(sweep(store, scores, Surveyor(served(0), ["object"])))
    embedding = scores.table().cases["a"].embedding

    def failing(*given: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Surveyor, "survey", failing)
    list(sweep(store, scores, Surveyor(served(1), ["object"])))
    after = scores.table().cases["a"]
    assert (after.error, after.labels) == ("MemoryError", {})
    assert np.array_equal(after.embedding, embedding)


def test_another_image_of_a_name_is_scored_and_described_anew(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder, ellipsoid_case: Any
) -> None:
    surveyor = Surveyor(served(0), ["object"])
    list(sweep(store, scores, surveyor))
    before, signature = scores.table().cases["a"], store.image_signature("a")
    assert scores.has_picture("a", signature)
    save_mask(ellipsoid_case.label[:, ::-1] * 40 + 9, ellipsoid_case.volume, store.folder / "a.nii.gz")
    assert not scores.has_picture("a", store.image_signature("a")), "it is another patient's"
    assert [step.case for step in sweep(store, scores, surveyor)] == ["a"]
    after = scores.table().cases["a"]
    assert not np.array_equal(after.embedding, before.embedding)
    assert scores.has_picture("a", store.image_signature("a"))


def test_a_file_that_was_copied_in_half_is_scored_when_it_is_whole(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder
) -> None:
    file = store.folder / "a.nii.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    surveyor = Surveyor(served(0), ["object"])
    assert {step.case: bool(step.problem) for step in sweep(store, scores, surveyor)}["a"]
    assert list(sweep(store, scores, surveyor)) == [], "nothing new can be found out"
    assert set(scores.table().unreadable) == {"a", "broken"}
    file.write_bytes(whole)
    assert [step.problem for step in sweep(store, scores, surveyor)] == [None]
    assert set(scores.table().unreadable) == {"broken"}


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_what_cannot_be_read_for_a_moment_is_not_called_unreadable(
    error: Exception,
    served: Callable[[int], Served],
    store: Store,
    scores: ScoreFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(path: Path) -> Any:
        raise error

    monkeypatch.setitem(volume._READERS, ".nii.gz", failing)
    surveyor = Surveyor(served(0), ["object"])
    assert len(list(sweep(store, scores, surveyor))) == 4
    monkeypatch.undo()
    assert scores.table().unreadable == {}
    assert {step.case: bool(step.problem) for step in sweep(store, scores, surveyor)} == {
        "a": False,
        "b": False,
        "c": False,
        "broken": True,
    }


def test_other_settings_are_another_model(tiny_model: MedSA) -> None:
    def stamp(intensity: IntensitySettings, axis: Any = "auto", *labels: str, base: str = "1") -> Stamp:
        predictor = Predictor(tiny_model, "key", intensity, axis, EmbeddingCache(1 << 24))
        return stamp_of(Served("tiny", "a test", 0, predictor, base), labels or ("object",))

    usual, window = IntensitySettings(), IntensitySettings(kind="window", window_hu=(0, 100))
    known = stamp(usual)
    assert stamp(usual) == known
    assert stamp(usual, "auto", "object", "tumour").view == known.view, "described alike"
    assert stamp(usual, "auto", "object", "tumour").model != known.model
    for other in (stamp(window), stamp(usual, "k"), stamp(usual, base="2")):
        assert other.view != known.view
        assert other.model != known.model


def test_cases_that_come_while_scoring_runs_are_scored_and_labelled_ones_are_not(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder
) -> None:
    now = [0.0]
    steps = sweep(store, scores, Surveyor(served(0), ["object"]), clock=lambda: now[0])
    done = [next(steps).case]
    image = (store.folder / "a.nii.gz").read_bytes()
    (store.folder / "new.nii.gz").write_bytes(image)
    (late,) = sorted({"a", "b", "c"} - set(done))[-1:]
    store.labelled = {late}
    now[0] = LIST_SECONDS + 1
    done += [step.case for step in steps]
    assert sorted(done) == sorted(store.list_images()), "a labelled one is described once"


def test_it_gives_way_to_clicks_at_this_state_folder(
    scoring: Callable[[int], MedsaScoring], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Path | None] = []
    monkeypatch.setattr(ClicksFirst, "wait", lambda self, *given: waited.append(self._path) or 0.0)
    scoring(0)({}, store)
    assert set(waited) == {tmp_path / "clicked"}
    assert len(waited) > 2 * 3, "between the parts of each case"


def test_a_pacs_that_is_away_ends_it(
    served: Callable[[int], Served], store: Store, scores: ScoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (store.folder / f"more{number}.nii.gz").write_bytes(b"x")
    asked = []

    def gone(case: str) -> Path:
        asked.append(case)
        raise PacsUnreachableError("no answer")

    monkeypatch.setattr(store, "image_path", gone)
    steps = list(sweep(store, scores, Surveyor(served(0), ["object"])))
    assert len(asked) == len(steps) == MOST_UNREACHABLE
    assert all(step.problem == "no answer" for step in steps)
    assert scores.table().cases == {}


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
    assert to_score(store, scores, stamp_of(served(0), ["object"])) == ["a"]


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
