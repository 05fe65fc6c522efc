"""`cli.py score`, alone and in several processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cli
from lib.commands.score import shard_of
from lib.errors import InputError
from lib.infers.serving import Served, ServingModel
from lib.scoring.scores import ScoreFolder
from lib.scoring.survey import Surveyor
from lib.scoring.sweep import Shard
from lib.training.clicks_first import ClicksFirst
from lib.volume import Volume, save_mask

APP = Path(cli.__file__).resolve().parent


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 255, (24, 20, 3)).astype(np.uint8)
        save_mask(values, Volume(values, np.diag([1, 1, 3, 1.0])), folder / f"case{number}.nii.gz")
    return folder


@pytest.fixture
def command(studies: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def make(*more: str) -> list[str]:
        settings = ["--task", "object", "--state", str(tmp_path / "state"), "--conf", "base", "vit_t"]
        return ["score", "--studies", str(studies), *settings, *more]

    return make


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        (None, {}, Shard(0, 1)),
        (None, {"RANK": "2", "WORLD_SIZE": "3"}, Shard(2, 3)),
        ("1/4", {"RANK": "2", "WORLD_SIZE": "3"}, Shard(1, 4)),
    ],
)
def test_whose_share_it_is(text: str | None, environment: dict[str, str], shard: Shard) -> None:
    assert shard_of(text, environment) == shard


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "a/b", "0/0", "1/"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"shard: .* such as 0/4"):
        shard_of(text, {})


@pytest.mark.parametrize(
    "environment", [{"RANK": "3"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}]
)
def test_half_of_what_torchrun_says_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"RANK/WORLD_SIZE: .* such as 0/4"):
        shard_of(None, environment)


def test_a_folder_without_an_image_is_named(
    command: Callable[..., list[str]], studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in studies.iterdir():
        file.unlink()
    assert cli.main(command()) != 0
    assert "studies" in capsys.readouterr().err


def test_it_goes_on_with_a_version_that_is_published_meanwhile(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    current, scored = ServingModel.current, []

    def published_after_two(serving: ServingModel) -> Served:
        return replace(current(serving), adapter_version=int(len(scored) >= 2))

    def counted(surveyor: Surveyor, *given: object) -> object:
        scored.append(surveyor.served.adapter_version)
        return survey(surveyor, *given)  # type: ignore[arg-type]

    survey = Surveyor.survey
    monkeypatch.setattr(ServingModel, "current", published_after_two)
    monkeypatch.setattr(Surveyor, "survey", counted)
    assert cli.main(command()) == 0
    assert scored == [0, 0, 1, 1, 1, 1]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("base")] == [
        "base vit_t, version 0: 0 could not be scored",
        "base vit_t, version 1: 0 could not be scored",
    ]


def test_it_gives_way_to_clicks_of_a_server_on_the_same_state_folder(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Path | None] = []
    monkeypatch.setattr(ClicksFirst, "wait", lambda self, *given: waited.append(self._path) or 0.0)
    assert cli.main(command()) == 0
    assert set(waited) == {tmp_path / "state" / "clicked"}


def test_stopped_it_says_so(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.commands.score.stop_requested", lambda: True)
    assert cli.main(command()) == 4
    assert "score: stopped" in capsys.readouterr().out


def test_two_processes_share_the_work_and_a_bad_file_is_named(
    command: Callable[..., list[str]], studies: Path, tmp_path: Path
) -> None:
    (studies / "broken.nii.gz").write_bytes(b"x")
    run = [sys.executable, str(APP / "cli.py"), *command()]
    workers = [
        subprocess.Popen(
            run,
            stdout=subprocess.PIPE,
            text=True,
            # As torchrun starts them.
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=240)[0] for worker in workers]
    assert sorted(worker.returncode for worker in workers) == [0, 1]
    lines = [line for text in said for line in text.splitlines()[:-1]]
    assert len(lines) == 5
    assert sum("scored; " in line for line in lines) == 4
    (named,) = [line for line in lines if "scored; " not in line]
    assert named.startswith("broken: ")
    table = ScoreFolder(tmp_path / "state" / "scores").table()
    assert len(table.cases) == 5
    assert len(list((tmp_path / "state" / "scores").glob("part-*.jsonl"))) == 2


def test_what_is_done_is_not_done_again(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command("--shard", "0/2")) == 0
    first = len(capsys.readouterr().out.splitlines()) - 1
    assert cli.main(command()) == 0
    assert len(capsys.readouterr().out.splitlines()) - 1 == 4 - first
    assert cli.main(command()) == 0
    assert capsys.readouterr().out == "base vit_t, version 0: 0 could not be scored\n"
