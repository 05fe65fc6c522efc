"""The simulated annotator at a server in memory."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lib.commands.annotator import (
    NO_CASE,
    POLL_S,
    QUEUE_PATIENCE_S,
    Annotator,
    CaseRow,
    ObjectRow,
    Plan,
    summarise,
)
from lib.commands.client import MedsaClient
from lib.errors import InputError, NotFoundError

RUN = {"decision": "published", "reasons": ["better"], "time": "t1", "version": 1}


class Watcher:
    """Keeps what the annotator says, and how long it slept."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.slept = 0.0

    def report(self, rows: Any, now: str) -> None:
        self.said.append(now)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def annotator(http: httpx.Client, files: dict[str, Path], watcher: Watcher, plan: Plan) -> Annotator:
    return Annotator(MedsaClient(http, "me"), files, plan, watcher.report, watcher.sleep)


def test_clicks_each_object_until_it_is_right_and_saves_the_truth(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers, server.version = ["case1", "case0"], 4
    rows = annotator(http, truth_files, watcher, Plan(clicks=3)).run()
    assert [(row.case_id, row.saved, row.version, row.error) for row in rows] == [
        ("case1", True, 4, None),
        ("case0", True, 4, None),
    ]
    first = rows[0].objects[0]
    assert [result.label for result in rows[0].objects] == ["object", "other"]
    assert first.dice[0] < 1.0
    assert first.dice[1:] == [1.0]  # nothing was left to correct
    assert len(first.seconds) == 2
    saved_info, saved = server.saved["case1"]
    assert np.array_equal(saved, server.truth["case1"])
    assert saved_info["label_info"] == [{"name": "object", "idx": 1}, {"name": "other", "idx": 2}]


def test_the_first_click_is_inside_the_second_on_the_error(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers = ["case0"]
    annotator(http, truth_files, watcher, Plan(clicks=2, label="object")).run()
    truth = server.truth["case0"] == 1
    first, second = server.clicks
    assert truth[tuple(first["foreground"][0])]
    assert first["background"] == []
    added = tuple(second["foreground"][1])
    assert truth[added]
    assert added[0] < truth.shape[0] // 2  # the half that the first answer left out


def test_stops_after_the_number_of_cases(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers = ["case0", "case1", "case2"]
    rows = annotator(http, truth_files, watcher, Plan(clicks=1, cases=2)).run()
    assert [row.case_id for row in rows] == ["case0", "case1"]


def test_a_list_of_cases_replaces_the_next_sample(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    rows = annotator(http, truth_files, watcher, Plan(clicks=1, only=("case2", "case0"))).run()
    assert [row.case_id for row in rows] == ["case2", "case0"]
    assert not [request for request in server.requests if "activelearning" in request.url.path]


def test_merged_labels_are_clicked_and_saved_as_one(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers = ["case0"]
    rows = annotator(http, truth_files, watcher, Plan(clicks=1, merge="other")).run()
    assert [result.label for result in rows[0].objects] == ["other"]
    assert np.array_equal(server.saved["case0"][1], (server.truth["case0"] > 0) * 2)


def test_a_failed_request_is_counted_and_the_next_case_goes_on(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers, server.broken_cases = ["case0", "case1", "case2"], ("case0", "case2")
    rows = annotator(http, truth_files, watcher, Plan(clicks=1)).run()
    assert [(row.case_id, row.saved) for row in rows] == [("case0", False), ("case1", True), ("case2", False)]
    assert "422" in (rows[0].error or "")
    assert summarise(rows, 1, [])["errors"] == 2
    assert server.leases["case0"] == "me"  # left with the id under which it failed


def test_a_server_that_offers_the_same_case_to_everyone_ends_the_run(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers, server.broken_cases, server.keeps_leases = ["case0", "case1"], ("case0",), False
    rows = annotator(http, truth_files, watcher, Plan(clicks=1)).run()
    assert [row.case_id for row in rows] == ["case0", NO_CASE]
    assert rows[1].error == "case case0 is offered again and again"
    summary = summarise(rows, 1, [])
    assert (summary["cases"], summary["errors"]) == (1, 2)


def test_a_case_without_truth_is_an_error(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers = ["stranger", "case1"]
    row, good = annotator(http, truth_files, watcher, Plan(clicks=1)).run()
    assert row.error is not None
    assert "'stranger'" in row.error
    assert good.saved


def test_waits_while_a_training_is_due_or_runs(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers = ["case0"]
    server.statuses = [{}, {"training_due": True}, {"training": True}, {"training": True}, {"last_run": RUN}]
    worker = annotator(http, truth_files, watcher, Plan(clicks=1))
    (row,) = worker.run()
    assert row.error is None
    assert worker.trainings == [RUN]
    assert watcher.slept == 3 * POLL_S
    assert watcher.said.count("training") == 2


def test_a_training_that_was_there_before_is_not_counted(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers, server.statuses = ["case0"], [{"last_run": RUN}, {"last_run": RUN}]
    worker = annotator(http, truth_files, watcher, Plan(clicks=1))
    worker.run()
    assert worker.trainings == []


def test_a_failed_training_is_an_error_of_the_case(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    failed = {**RUN, "decision": "failed", "reasons": ["out of memory"]}
    server.offers, server.statuses = ["case0"], [{}, {"last_run": failed}]
    (row,) = annotator(http, truth_files, watcher, Plan(clicks=1)).run()
    assert row.error == "training failed: out of memory"
    assert row.saved


def test_a_training_that_never_starts_is_given_up(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers = ["case0"]
    server.statuses = [{}] + [{"training_due": True}] * 1000
    (row,) = annotator(http, truth_files, watcher, Plan(clicks=1)).run()
    assert row.error is not None
    assert "did not start" in row.error
    assert watcher.slept == QUEUE_PATIENCE_S


def test_without_waiting_the_status_is_not_asked_again(
    http: httpx.Client, server: Any, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    server.offers = ["case0"]
    annotator(http, truth_files, watcher, Plan(clicks=1, wait=False)).run()
    assert [request.url.path for request in server.requests].count("/medsa/status") == 1


def test_wrong_plans_are_refused_at_once(
    http: httpx.Client, truth_files: dict[str, Path], watcher: Watcher
) -> None:
    with pytest.raises(InputError, match="clicks: 0"):
        annotator(http, truth_files, watcher, Plan(clicks=0))
    with pytest.raises(NotFoundError, match="label: 'liver' is not accepted; allowed: one of object, other"):
        annotator(http, truth_files, watcher, Plan(label="liver"))
    with pytest.raises(NotFoundError, match="merge: 'liver'"):
        annotator(http, truth_files, watcher, Plan(merge="liver"))


def test_the_summary_carries_a_finished_objects_dice_on() -> None:
    rows = [
        CaseRow("a", [ObjectRow("x", [0.5, 1.0], [1.0, 3.0])], version=0, saved=True),
        CaseRow("b", [ObjectRow("x", [0.1, 0.2, 0.6], [2.0, 2.0, 9.0])], version=1, saved=True),
        CaseRow("c", [ObjectRow("x")], error="broken"),
    ]
    summary = summarise(rows, 3, [RUN])
    assert summary["mean_dice_by_click"] == pytest.approx([0.3, 0.6, 0.8])
    assert (summary["cases"], summary["saved"], summary["errors"]) == (3, 2, 1)
    assert (summary["versions"], summary["median_click_seconds"]) == ([0, 1], 2.0)
    assert summary["rows"][2]["error"] == "broken"


def test_a_summary_of_nothing_has_no_figures() -> None:
    summary = summarise([], 3, [])
    assert (summary["mean_dice_by_click"], summary["median_click_seconds"]) == ([], None)
