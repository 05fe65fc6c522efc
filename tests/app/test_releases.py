"""Releases over HTTP and on the page, at the real server: what is rolled back serves the next request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]


def record(parent: int, dice: float) -> dict[str, Any]:
    def scored(value: float) -> list[dict[str, Any]]:
        return [{"case_id": "case1", "label": "object", "clicks": [value, value], "automatic": value / 2}]

    return {
        "champion": parent,
        "time": "2026-01-01T10:00:00+00:00",
        "trained": ["case0"],
        "validated": ["case1"],
        "reasons": [f"object is better than with version {parent} <b>"],
        "scores": {"champion": scored(dice - 0.25), "candidate": scored(dice)},
    }


def test_releases_over_http_and_on_the_page(
    make_server: Callable[..., Any],
    publish_adapter: Callable[..., None],
    label_of: Callable[[Path, str], Path],
    wait_until: Callable[[Callable[[], bool], str], None],
) -> None:
    server = make_server(cases=3, auto_train="false")
    assert "the base alone" in server.get("/medsa/").text
    for parent, dice in enumerate((0.5, 0.75, 1.0)):
        publish_adapter(server, record=record(parent, dice))
    assert server.version_of_answer("case0") == 3

    listed = server.get("/medsa/releases").json()
    assert (listed["serving"], listed["rollback_to"], listed["versions"]) == (3, 2, [0, 1, 2, 3])
    shown = server.get("/medsa/releases/2").json()
    assert shown["adapter"]["base_name"] == "vit_t"
    assert shown["run"]["dice_after"] == 0.75

    assert server.post("/medsa/releases/rollback").json()["serving"] == 2
    assert server.version_of_answer("case0") == 2
    assert server.post("/medsa/releases/prune", {"keep": 1}).json()["versions"] == [0, 1, 2, 3]
    assert server.post("/medsa/releases/prune", {"keep": 0}).status_code == 422

    assert server.save("case0", label_of(server.studies, "case0")).status_code == 200
    wait_until(lambda: server.status()["unscored_cases"] == 0, "the scores of the unlabelled cases")
    cold = "too little is labelled to go by what the model is unsure of"
    wait_until(lambda: cold in server.get("/medsa/").text, "the ranking by these scores")
    text = server.get("/medsa/").text
    for part in (
        "version 2",
        "<li>case0</li>",
        "only when somebody asks",
        "object is better than with version 2 &lt;b&gt;",
        "version 3, 2 labels: Dice 1.000 after 1 click",
        "version 0, 0 labels: Dice 0.125 without clicks",
        "rolled back to version 2",
    ):
        assert part in text
    offered = server.post("/activelearning/medsa", {"client_id": "ann"}).json()["id"]
    assert f'<p class="big">{offered}</p>' in text
    assert f'<p class="big">{offered}</p>' not in server.get("/medsa/").text

    with server.client() as client:
        answer = client.post("/medsa/rollback", data={"version": "1"}, follow_redirects=True)
    assert (answer.status_code, str(answer.url)) == (200, f"{server.url}/medsa/")
    assert "rolled back to version 1" in answer.text
    assert server.version_of_answer("case0") == 1
    assert server.post("/medsa/releases/prune", {"keep": 1}).json()["pruned"] == [2]
    answer = server.post("/medsa/releases/rollback", {"version": 2})
    assert (answer.status_code, "were pruned on" in answer.json()["detail"]) == (404, True)
    assert server.version_of_answer("case0") == 1


def test_the_page_shows_the_running_training(
    make_server: Callable[..., Any],
    label_of: Callable[[Path, str], Path],
    wait_until: Callable[[Callable[[], bool], str], None],
) -> None:
    server = make_server(cases=3, train_minutes="5", train_after="9", train_idle_minutes="30")
    for case in ("case0", "case1", "case2"):
        assert server.save(case, label_of(server.studies, case)).status_code == 200
    text = server.get("/medsa/").text
    assert "A training starts with 9 new labels, 6 more. Without a further label it starts at " in text
    assert server.post("/train/medsa").status_code == 200
    wait_until(lambda: "training: step" in server.get("/medsa/").text, "the progress on the page")
    assert "<progress" in server.get("/medsa/").text
    with server.client() as client:
        client.delete("/train/")
    wait_until(lambda: not server.children("train"), "the training to end")
    assert "No training runs." in server.get("/medsa/").text
