"""The simulated annotator at the real server: clicks, labels, a training, and the figures it keeps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from lib.training.releases import Releases
from lib.volume import load_volume

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Any]) -> Any:
    return make_server(cases=3)


@pytest.fixture
def truth(server: Any, label_of: Callable[[Path, str], Path], tmp_path: Path) -> Path:
    folder = tmp_path / "truth"
    folder.mkdir()
    for case in ("case0", "case1", "case2", "nrrdcase"):
        shutil.copy(label_of(server.studies, case), folder)
    return folder


def test_annotates_waits_for_the_training_and_keeps_the_figures(
    server: Any, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    command = ["simulate", "--server", server.url, "--truth", str(truth), "--json", str(file)]
    assert cli.main([*command, "--clicks", "2", "--cases", "3"]) == 0
    content = json.loads(file.read_text())
    assert (content["cases"], content["saved"], content["errors"]) == (3, 3, 0)
    assert [run["decision"] for run in content["trainings"]] == [
        record["decision"] for record in Releases(server.state).records()
    ]
    assert len(content["trainings"]) == 1
    for row in content["rows"]:
        assert row["version"] == 0
        assert 1 <= len(row["objects"][0]["dice"]) <= 2
        saved = load_volume(server.studies / "labels" / "final" / f"{row['case_id']}.nii.gz")
        assert np.array_equal(saved.array, load_volume(truth / f"{row['case_id']}.nii.gz").array)
    assert "cases 3, saved 3, errors 0" in capsys.readouterr().out

    # The last of the four images is offered next, then none.
    assert cli.main([*command, "--clicks", "1"]) == 0
    assert json.loads(file.read_text())["cases"] == 1
    assert cli.main(command) == 0
    assert json.loads(file.read_text())["cases"] == 0


def test_a_case_without_truth_hides_no_other(
    make_server: Callable[..., Any], label_of: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    server = make_server(cases=3, auto_train="false")
    truth, file = tmp_path / "truth", tmp_path / "figures.json"
    truth.mkdir()
    # The case that is offered first lacks its truth, so that all others come after it.
    answer = server.post("/activelearning/medsa", {"client_id": "first"})
    lacking = answer.json()["id"]
    for case in {"case0", "case1", "case2", "nrrdcase"} - {lacking}:
        shutil.copy(label_of(server.studies, case), truth)
    command = ["simulate", "--server", server.url, "--truth", str(truth), "--client-id", "first"]
    assert cli.main([*command, "--clicks", "1", "--json", str(file)]) == 1
    content = json.loads(file.read_text())
    assert (content["cases"], content["saved"], content["errors"]) == (4, 3, 1)
    assert [row["case_id"] for row in content["rows"] if row["error"]] == [lacking]


def test_a_case_that_the_server_does_not_have_is_an_error_and_exit_code_1(
    server: Any, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (truth / "case0.nii.gz").rename(truth / "stranger.nii.gz")
    only = tmp_path / "only.txt"
    only.write_text("stranger\ncase1\n")
    command = ["simulate", "--server", server.url, "--truth", str(truth), "--only", str(only)]
    assert cli.main([*command, "--clicks", "1", "--no-wait"]) == 1
    text = capsys.readouterr().out
    assert "ERROR POST /infer/medsa: 404" in text
    assert "saved 1, errors 1" in text
