"""The trainer that MONAI Label calls."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from lib.errors import PacsError, PacsUnreachableError, TrainingError, VolumeError
from lib.prompts.promptset import PromptSet
from lib.trainers.medsa_trainer import MedsaTrainer, labelled_cases, training_cases
from lib.training.cases import CaseFile
from lib.training.record import RunRecord
from lib.training.releases import write_json
from lib.training.request import RunRequest


class Store:
    """A datastore with two labelled images."""

    def patients(self) -> dict[str, str]:
        return {"b": "p1"}

    def get_labeled_images(self) -> list[str]:
        return ["b", "a"]

    def get_image_uri(self, image_id: str) -> str:
        return f"/studies/{image_id}.nii.gz"

    def get_label_uri(self, label_id: str, tag: str) -> str:
        return f"/studies/labels/{tag}/{label_id}.nii.gz"

    def recorded_prompts(self, image_id: str) -> dict[str, PromptSet]:
        return {"object": PromptSet(((1, 2, 3),))} if image_id == "a" else {}


def test_the_labelled_cases_are_those_with_a_final_label() -> None:
    first, second = labelled_cases(Store())
    assert first == CaseFile("a", Path("/studies/a.nii.gz"), Path("/studies/labels/final/a.nii.gz"))
    assert (second.case_id, second.patient) == ("b", "p1")


def test_an_image_that_cannot_be_had_costs_that_case_alone() -> None:
    class Away(Store):
        def get_image_uri(self, image_id: str) -> str:
            if image_id == "a":
                raise PacsError("the PACS cannot be reached")
            raise VolumeError("slices of two sizes")

    away, unusable = training_cases(Away())
    assert (away.problem, away.away) == ("the PACS cannot be reached", True)
    assert (unusable.problem, unusable.away, unusable.patient) == ("slices of two sizes", False, "p1")


def test_a_pacs_that_is_away_is_not_asked_for_every_image() -> None:
    asked = []

    class Gone(Store):
        def get_labeled_images(self) -> list[str]:
            return [f"case{number}" for number in range(8)]

        def is_fetched(self, image_id: str) -> bool:
            return image_id == "case7"

        def get_image_uri(self, image_id: str) -> str:
            asked.append(image_id)
            if image_id == "case7":
                return "/cache/case7.nrrd"
            raise PacsUnreachableError("no answer")

    cases = labelled_cases(Gone())
    assert asked == ["case0", "case1", "case2", "case7"]
    assert [case.away for case in cases] == [True] * 7 + [False]


def test_returns_what_became_of_the_run(tmp_path: Path) -> None:
    given: list[CaseFile] = []

    def run(files: list[CaseFile], request: RunRequest, should_stop: Callable[[], bool]) -> RunRecord:
        assert not should_stop()
        given.extend(files)
        return RunRecord("published", ("better",), "now", 0, version=1)

    result = MedsaTrainer(run, tmp_path)({"model": "medsa"}, Store())
    assert result == {"decision": "published", "reasons": ["better"], "version": 1}
    assert [file.case_id for file in given] == ["a", "b"]
    assert [dict(file.recorded) for file in given] == [{"object": PromptSet(((1, 2, 3),))}, {}]


def test_a_run_that_cannot_start_fails(tmp_path: Path) -> None:
    def run(files: list[CaseFile], request: RunRequest, should_stop: Callable[[], bool]) -> RunRecord:
        raise TrainingError("no labels")

    with pytest.raises(TrainingError):
        MedsaTrainer(run, tmp_path)({}, Store())


HOLDER = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.kill()


@pytest.mark.parametrize("lock_file_is_left", [True, False])
def test_a_killed_training_is_not_under_way(tmp_path: Path, lock_file_is_left: bool) -> None:
    trainer = MedsaTrainer(lambda files: RunRecord("refused", (), "now", 0), tmp_path)
    write_json(tmp_path / "progress.json", {"epoch": 40, "total_time": "0:01:00", "running": True})
    if lock_file_is_left:
        with held_elsewhere(tmp_path / "training.lock"):
            pass
    assert trainer.stats() == {"epoch": 40, "total_time": "0:01:00", "running": False}
    # Having looked is no reason why the next run could not start.
    FileLock(tmp_path / "training.lock").acquire(timeout=0).lock.release()


def test_stats_are_what_viewers_can_read(tmp_path: Path) -> None:
    trainer = MedsaTrainer(lambda files: RunRecord("refused", (), "now", 0), tmp_path)
    assert trainer.stats() == {}
    progress = {
        "epoch": 40,
        "total_epochs": 100,
        "best_metric": None,
        "total_time": "0:01:00",
        "running": True,
    }
    write_json(tmp_path / "progress.json", progress)
    with held_elsewhere(tmp_path / "training.lock"):
        assert trainer.stats() == {"epoch": 40, "total_epochs": 100, "running": True}
    write_json(tmp_path / "progress.json", {**progress, "best_metric": 0.5, "running": False})
    assert (trainer.stats()["best_metric"], trainer.stats()["total_time"]) == (0.5, "0:01:00")
