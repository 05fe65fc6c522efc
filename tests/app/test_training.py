"""When training starts and stops, against the real server."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lib.training.releases import Releases

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

MakeServer = Callable[..., Any]
LabelOf = Callable[[Path, str], Path]
WaitUntil = Callable[[Callable[[], bool], str], None]
PROMISED_S = 10.0


def save(server: Any, label_of: LabelOf, *cases: str) -> None:
    for case in cases:
        answer = server.save(case, label_of(server.studies, case))
        assert answer.status_code == 200, answer.text


def records(server: Any) -> list[dict[str, Any]]:
    return Releases(server.state).records()


def in_steps(server: Any) -> bool:
    stats = server.get("/info/").json()["train_stats"]["medsa"]
    return bool(stats.get("running")) and "step" in str(stats.get("status", ""))


def test_few_labels_are_learnt_when_no_other_comes(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=4, train_after="99", train_idle_minutes="0.1", train_minutes="0.05")
    save(server, label_of, "case0", "case1", "case2")
    assert server.status()["pending_labels"] == 3
    wait_until(lambda: any(run["decision"] in ("published", "refused") for run in records(server)), "the run")
    assert (records(server)[0]["kind"], records(server)[0]["trigger"]) == ("incremental", "idle")
    wait_until(lambda: server.status()["pending_labels"] == 0, "the queue to be empty")


def test_a_stop_ends_it_within_ten_seconds_and_the_next_run_goes_on(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=4, train_minutes="30", checkpoint_seconds="1")
    save(server, label_of, "case0", "case1", "case2")
    wait_until(lambda: in_steps(server), "the first steps")
    wait_until(lambda: (server.state / "checkpoints" / "incremental.pt").exists(), "a checkpoint")
    (child,) = server.children("train")
    began = time.monotonic()
    with server.client() as client:
        stopped = client.delete("/train/")
    assert time.monotonic() - began < PROMISED_S
    assert (stopped.status_code, stopped.json()["status"]) == (200, "STOPPED")
    assert not child.is_running()
    assert server.get("/train/", check_if_running="true").status_code == 404
    assert records(server)[-1]["decision"] == "stopped"
    assert (server.state / "checkpoints" / "incremental.pt").exists()
    with server.client() as client:
        assert client.delete("/train/").status_code == 200, "nothing runs any more"

    assert server.post("/train/medsa", {"minutes": 0.05}).status_code == 200
    wait_until(lambda: records(server)[-1]["decision"] in ("published", "refused"), "the next run")
    assert records(server)[-1]["resumed"] > 0
    assert records(server)[-1]["trigger"] == "person"


@pytest.mark.parametrize("stage", ["leave-one-out", "evaluating the candidate"])
def test_a_stop_is_heard_as_soon_while_it_is_judged(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil, stage: str
) -> None:
    server = make_server(cases=4, train_minutes="0.1")
    save(server, label_of, "case0", "case1", "case2")
    progress = server.state / "progress.json"
    wait_until(
        lambda: progress.exists() and json.loads(progress.read_text())["status"].startswith(stage), stage
    )
    began = time.monotonic()
    with server.client() as client:
        assert client.delete("/train/").json()["status"] == "STOPPED"
    assert time.monotonic() - began < PROMISED_S
    assert records(server)[-1]["decision"] == "stopped"
    assert (server.state / "checkpoints" / "incremental.pt").exists()
    server.stop()


def test_a_person_comes_before_what_the_server_started(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=4, train_minutes="30")
    save(server, label_of, "case0", "case1", "case2")
    wait_until(lambda: in_steps(server), "the first steps of the automatic run")
    refused = server.post("/train/medsa", {"kind": "half"})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("kind: 'half' is not accepted")
    assert in_steps(server), "a bad request stops nothing"

    assert server.post("/train/medsa", {"kind": "full", "start": "base", "minutes": 5}).status_code == 200
    wait_until(lambda: in_steps(server) and len(records(server)) == 1, "the person's run")
    assert [(run["decision"], run["trigger"]) for run in records(server)] == [("stopped", "labels")]
    assert server.post("/train/medsa").status_code == 429, "a person's run is not pushed aside"
    with server.client() as client:
        client.delete("/train/")
    wait_until(lambda: len(records(server)) == 2, "its record")
    last = records(server)[-1]
    assert (last["decision"], last["trigger"], last["kind"], last["start"]) == (
        "stopped",
        "person",
        "full",
        "base",
    )


def test_a_label_saved_during_a_training_starts_the_next(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=6, train_minutes="0.3")
    save(server, label_of, "case0", "case1", "case2")
    wait_until(lambda: bool(server.children("train")), "the first training")
    wait_until(lambda: in_steps(server), "its steps")
    save(server, label_of, "case3", "case4", "case5")
    wait_until(
        lambda: sum(run["decision"] in ("published", "refused") for run in records(server)) >= 2,
        "the second training",
    )
    first, second = (run for run in records(server) if run["decision"] in ("published", "refused"))
    assert set(first["label_digests"]) == {"case0", "case1", "case2"}
    assert {"case3", "case4", "case5"} <= set(second["label_digests"])


def test_a_night_that_was_missed_runs_when_the_server_starts_in_its_window(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    """Its time was half an hour ago; the scheduler looks once a minute."""
    at = (datetime.now(UTC) - timedelta(minutes=30)).strftime("%H:%M")
    server = make_server(cases=4, auto_train="false", nightly=f'{{"at":"{at}","max_hours":2,"from":"base"}}')
    save(server, label_of, "case0", "case1", "case2")
    status = server.status()["nightly"]
    assert (status["window_open"], status["from"]) == (True, "base")
    wait_until(lambda: in_steps(server), "the night's training")
    with server.client() as client:
        assert client.delete("/train/").status_code == 200
    wait_until(lambda: bool(records(server)), "its record")
    last = records(server)[-1]
    assert (last["decision"], last["kind"], last["trigger"], last["start"]) == (
        "stopped",
        "full",
        "nightly",
        "base",
    )
    assert (server.state / "checkpoints" / "full.pt").exists()
    assert json.loads((server.state / "nightly.json").read_text())["over"] is True


def test_training_waits_while_somebody_clicks(
    make_server: MakeServer, label_of: LabelOf, wait_until: WaitUntil
) -> None:
    server = make_server(cases=4, train_minutes="30")
    save(server, label_of, "case0", "case1", "case2")
    wait_until(lambda: in_steps(server), "the first steps")

    def steps() -> int:
        words = server.get("/info/").json()["train_stats"]["medsa"]["status"].replace(",", "").split()
        return int(words[words.index("step") + 1])

    # As long as thirty steps take on this machine, whatever it is. One is being made when the first click comes, and
    # clicks without a pause let one through in 20 seconds.
    before, began = steps(), time.monotonic()
    wait_until(lambda: steps() >= before + 30, "thirty more steps")
    alone = time.monotonic() - began
    before, began = steps(), time.monotonic()
    while time.monotonic() - began < alone:
        server.version_of_answer("case3")
    assert steps() - before <= min(10, 4 + alone // 20)
    with server.client() as client:
        client.delete("/train/")
