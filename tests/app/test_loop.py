"""The whole loop over HTTP: labels, training by itself, the new version, and what survives a kill -9."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pytest

from lib.scoring.scores import ScoreFolder
from lib.training.releases import Releases

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

MakeServer = Callable[..., Any]
LabelOf = Callable[[Path, str], Path]
WaitUntil = Callable[[Callable[[], bool], str], None]


def save(server: Any, label_of: LabelOf, *cases: str) -> None:
    for case in cases:
        answer = server.save(case, label_of(server.studies, case))
        assert answer.status_code == 200, answer.text


def finished_runs(server: Any) -> list[dict[str, Any]]:
    return [run for run in Releases(server.state).records() if run["decision"] in ("published", "refused")]


def test_training_starts_by_itself_and_its_outcome_serves(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=6)
    answer = server.post("/train/medsa")
    assert (answer.status_code, "no labels" in answer.json()["detail"]) == (409, True)

    save(server, label_of, "case0", "case1")
    assert (server.status()["pending_labels"], server.status()["training_due"]) == (2, False)
    save(server, label_of, "case2")

    wait_until(lambda: bool(finished_runs(server)), "a finished training")
    run = finished_runs(server)[0]
    assert set(run["label_digests"]) == {"case0", "case1", "case2"}
    assert run["skipped"] == []
    published = run["version"] if run["decision"] == "published" else 0
    assert server.version_of_answer("case3") == published

    wait_until(lambda: not server.status()["training"], "the child to end")
    stats = server.get("/info/").json()["train_stats"]["medsa"]
    assert (stats["epoch"], stats["total_epochs"]) == (100, 100)
    assert stats["total_time"]
    wait_until(lambda: server.status()["unscored_cases"] == 0, "the scores of the unlabelled cases")
    scores = ScoreFolder(server.state / "scores").table().cases
    assert {scores[case].adapter_version for case in ("case3", "case4", "nrrdcase")} == {published}


def test_a_case_with_a_bad_label_is_skipped_by_name(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=4, auto_train="false", train_minutes="0.05")
    bad = nibabel.Nifti1Image(np.full((40, 36, 20), 9, np.uint8), np.eye(4))
    nibabel.save(bad, server.studies / "labels" / "final" / "case3.nii.gz")
    save(server, label_of, "case0", "case1", "case2")
    wait_until(lambda: server.get("/info/").json()["datastore"]["completed"] == 4, "the file to be seen")
    assert server.post("/train/medsa").status_code == 200
    wait_until(lambda: bool(finished_runs(server)), "a finished training")
    assert [case["case_id"] for case in finished_runs(server)[0]["skipped"]] == ["case3"]


def test_a_new_version_answers_the_next_request(
    make_server: MakeServer, publish_adapter: Callable[..., None]
) -> None:
    server = make_server(cases=2, auto_train="false")
    assert server.version_of_answer("case0") == 0
    publish_adapter(server)
    assert server.version_of_answer("case0") == 1
    damaged = server.state / "releases" / "v0001"
    publish_adapter(server)
    assert server.version_of_answer("case0") == 2
    publish_damaged(server, damaged)
    assert server.version_of_answer("case0") == 2
    assert "v0003" in server.status()["problem"]


def publish_damaged(server: Any, source: Path) -> None:
    def write(folder: Path) -> None:
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes()[:200])
        (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())

    Releases(server.state).publish(
        write, {"decision": "published", "reasons": ["a test"], "label_digests": {}}
    )


def test_a_killed_training_changes_nothing_and_the_next_one_works(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=4, train_minutes="0.3", checkpoint_seconds="0")
    save(server, label_of, "case0", "case1", "case2")
    checkpoint = server.state / "checkpoints" / "incremental.pt"
    wait_until(checkpoint.exists, "the training to have a checkpoint")
    (child,) = server.children("train")
    os.kill(child.pid, signal.SIGKILL)
    assert server.version_of_answer("case0") == 0
    assert server.status()["pending_labels"] == 3
    wait_until(lambda: bool(finished_runs(server)), "the next training")
    assert finished_runs(server)[0]["label_digests"].keys() == {"case0", "case1", "case2"}
    assert finished_runs(server)[0]["resumed"] > 0
    wait_until(lambda: not checkpoint.exists(), "the checkpoint to go")
    assert not list((server.state / "releases").glob(".tmp-*"))


def in_training(server: Any) -> bool:
    stats = server.get("/info/").json()["train_stats"]["medsa"]
    return str(stats.get("status", "")).startswith("training")


def test_a_killed_server_comes_back_as_it_was(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil, publish_adapter: Callable[..., None]
) -> None:
    server = make_server(cases=4, auto_train="false", train_minutes="5")
    publish_adapter(server)
    save(server, label_of, "case0", "case1", "case2")
    assert server.post("/activelearning/medsa", {"client_id": "ann"}).json()["id"]
    assert server.post("/train/medsa").status_code == 200
    wait_until(lambda: in_training(server), "the training to be under way")
    before, info, leases = server.status(), server.get("/info/").json(), server.state / "leases.json"
    held = leases.read_text()
    (child,) = server.children("train")

    server.stop(signal.SIGKILL)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the orphan to end")
    server.start()

    after = server.status()
    assert {key: after[key] for key in ("version", "pending_labels", "versions", "last_run")} == {
        key: before[key] for key in ("version", "pending_labels", "versions", "last_run")
    }
    assert (after["version"], after["pending_labels"]) == (1, 3)
    assert server.get("/info/").json()["datastore"] == info["datastore"]
    assert leases.read_text() == held
    noted = server.get("/datastore/label/info", label="case0", tag="final").json()
    assert (noted["version"], noted["user"]) == (1, "host 127.0.0.1")


def test_a_registry_that_was_cut_off_is_built_anew(make_server: MakeServer, label_of: LabelOf) -> None:
    server = make_server(cases=3, auto_train="false")
    save(server, label_of, "case1")
    server.stop(signal.SIGKILL)
    registry = server.studies / "datastore_v2.json"
    registry.write_bytes(registry.read_bytes()[:50])
    server.start()
    assert server.get("/info/").json()["datastore"] == {
        "total": 4,
        "completed": 1,
        "label_tags": {"final": 1},
    }
    assert len(list(server.studies.glob("datastore_v2.json.broken-*"))) == 1


def test_a_stopped_training_is_not_started_again_by_itself(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=4, train_minutes="5")
    save(server, label_of, "case0", "case1", "case2")
    wait_until(lambda: bool(server.children("train")), "the training to start")
    with server.client() as client:
        assert client.delete("/train/").status_code == 200
    wait_until(lambda: not server.children("train"), "the training to end")
    status = server.status()
    assert (status["training_due"], status["pending_labels"]) == (False, 3)
    save(server, label_of, "nrrdcase")
    assert server.status()["training_due"]
