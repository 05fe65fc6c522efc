"""What the page shows, and how it is made; with the real server it is looked at in tests/app."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib.activelearning.chooser import Chooser
from lib.activelearning.reasons import why_none
from lib.scoring.scores import CaseScore, LabelScore, ScoreFolder
from lib.server import page_routes
from lib.server.curve import Point, draw_curve
from lib.server.page import (
    Curve,
    NextCase,
    PageState,
    Queue,
    Running,
    next_case,
    nightly_text,
    ohif_link,
    picture_link,
    rollback_choices,
    running_training,
    scoring_text,
    when_it_starts,
)
from lib.server.page_routes import page_router
from lib.settings import NightlySettings
from lib.training.account import explain
from lib.training.releases import Releases

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TEMPLATES = Path(page_routes.__file__).resolve().parents[2] / "templates"
EVIL = "<script>alert('x')</script>"
POINTS = (Point(0, 0, 0.25, None), Point(1, 5, 0.5, 0.25))
STATE = PageState(
    task="object",
    now=NOW,
    base="vit_t",
    base_reason="asked for",
    version=2,
    champion=3,
    problem=f"a problem {EVIL}",
    rollback_to=2,
    choices=(2, 1, 0),
    curves=(Curve(EVIL, draw_curve(EVIL, POINTS), POINTS),),
    queue=Queue((EVIL, "case1"), 7, "soon"),
    running=Running(40, f"training {EVIL}", 0.25, NOW),
    decisions=(
        explain(
            {
                "decision": "published",
                "version": 3,
                "time": EVIL,
                "by": EVIL,
                "reasons": [f"better {EVIL}"],
                "notes": [EVIL],
                "trained": ["a", "b", "c"],
                "left_out": [["a"], ["b", EVIL]],
                "skipped": [{"case_id": "odd", "reason": f"no volume {EVIL}"}],
                "events": [f"memory ran out {EVIL}"],
                "scores": {"champion": [{"clicks": [0.25]}], "candidate": [{"clicks": [0.5]}]},
            }
        ),
        explain({"decision": EVIL}),
        explain({"decision": "pruned", "versions": [1, 2]}),
    ),
    suspicious=({"case_id": EVIL, "label": EVIL, "dice": 0.1, "typical": 0.9}, {}),
    nightly="no night",
    next_case=NextCase(EVIL, EVIL, 3, 7, (("border", 0.25),), picture="cases/x/picture.png"),
    scoring=EVIL,
)
EMPTY = replace(
    STATE,
    base=None,
    base_reason=None,
    version=None,
    champion=None,
    problem=None,
    rollback_to=None,
    choices=(),
    curves=(),
    queue=Queue((), 0, "later"),
    running=None,
    decisions=(),
    suspicious=(),
    next_case=NextCase(None, "no case"),
    scoring="",
)


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    found = Releases(tmp_path / "state")
    for _ in range(2):
        found.publish(lambda folder: (folder / "x").write_text("x") and None, {"decision": "published"})
    return found


def client_for(releases: Releases, state: PageState) -> TestClient:
    server = FastAPI()
    server.router.routes[0:0] = page_router(releases, TEMPLATES, lambda now: state, lambda: NOW).routes
    return TestClient(server, base_url="http://server")


def test_every_name_is_escaped(releases: Releases) -> None:
    page = client_for(releases, STATE).get("/medsa/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.count("<script") == 1
    assert page.text.count("&lt;script&gt;") >= 14
    for part in (
        "version 2",
        "Version 3 is to serve",
        "40 %",
        "loss 0.250",
        "0.250 &rarr; 0.500",
        "pruned: 1, 2",
        "trained on 3 and judged by 3 cases (3 of them left out in turn: leave one out)",
        "odd was skipped: no volume",
        "memory ran out",
    ):
        assert part in page.text


def test_an_empty_state_can_be_shown(releases: Releases) -> None:
    text = client_for(releases, EMPTY).get("/medsa/").text
    for part in ("nothing yet", "No training runs", "No version was published yet", "no case"):
        assert part in text


def test_only_its_own_style_and_script_may_run(releases: Releases) -> None:
    page = client_for(releases, STATE).get("/medsa/")
    policy = page.headers["content-security-policy"]
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        assert f"{tag}-src {page_routes._source(content)}" in policy
    assert not re.search(r'(src|href)="(?!cases/)|https?://(?!www\.w3\.org)', page.text)
    assert " style=" not in page.text  # the policy would not let it count


def test_it_renews_itself_without_a_script_too(releases: Releases) -> None:
    text = client_for(releases, STATE).get("/medsa/").text
    assert '<noscript><meta http-equiv="refresh"' in text
    sections = re.findall(r'<section id="([a-z]+)"', text)
    assert len(sections) == len(set(sections)) == 7


def test_the_address_without_a_slash_leads_there(releases: Releases) -> None:
    answer = client_for(releases, STATE).get("/medsa", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "medsa/")


def test_the_button_rolls_back_and_leads_back(releases: Releases) -> None:
    client = client_for(releases, STATE)
    answer = client.post("/medsa/rollback", data={"version": "1"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    assert releases.champion_version() == 1
    assert releases.records()[-1]["time"] == "2026-01-02T03:04:05+00:00"
    client.post("/medsa/rollback")
    assert releases.champion_version() == 0


@pytest.mark.parametrize(("version", "status"), [("x", 422), ("-1", 422), ("9", 404)])
def test_what_is_no_version_is_refused(releases: Releases, version: str, status: int) -> None:
    answer = client_for(releases, STATE).post("/medsa/rollback", data={"version": version})
    assert (answer.status_code, "version: " in answer.json()["detail"]) == (status, True)
    assert releases.champion_version() == 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),
        ({"Origin": "http://server"}, 303),
        ({"Origin": "https://proxy", "Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "http://evil"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://server", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_another_sites_page_cannot_press_the_button(
    releases: Releases, headers: dict[str, str], status: int
) -> None:
    answer = client_for(releases, STATE).post("/medsa/rollback", headers=headers, follow_redirects=False)
    assert (answer.status_code, releases.champion_version()) == (status, 1 if status == 303 else 2)


def test_with_accounts_the_page_asks_for_one(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    from monailabel.config import settings
    from monailabel.endpoints.user import auth

    roles: list[str] = []
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "from_token", lambda token: auth.User(username="ann", roles=roles))
    client = client_for(releases, STATE)
    assert client.get("/medsa/").status_code == 403
    roles.append(settings.MONAI_LABEL_AUTH_ROLE_USER)
    assert client.get("/medsa/").status_code == 200
    assert client.post("/medsa/rollback").status_code == 403
    assert releases.champion_version() == 2


ABOUT: dict[str, Any] = {
    "pending_labels": 2,
    "train_after": 5,
    "obstacle": None,
    "training": False,
    "training_due": False,
    "auto_train": True,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "5 new labels, 3 more. Without a further label it starts at 03:19 UTC."),
        ({"pending_labels": 0}, "5 new labels, 5 more."),
        ({"training": True}, "A training runs"),
        ({"auto_train": False}, "only when somebody asks"),
        ({"training_due": True, "pending_labels": 6}, "starts at once"),
        ({"pending_labels": 6}, "tried for these labels already"),
        ({"pending_labels": 6, "obstacle": "label 2 more"}, "No training starts: label 2 more."),
    ],
)
def test_when_a_training_starts(change: dict[str, Any], said: str) -> None:
    saved = datetime(2026, 1, 2, 2, 59, 30, tzinfo=UTC)
    text = when_it_starts({**ABOUT, **change}, 20.0, saved, NOW)
    assert said in text
    assert ("Without a further" in text) == (change == {})
    assert "Without a further" not in when_it_starts({**ABOUT, **change}, 0.0, saved, NOW)


@pytest.fixture
def scores(tmp_path: Path) -> ScoreFolder:
    folder = ScoreFolder(tmp_path / "scores")
    for place, (case, border) in enumerate({"a": 0.25, "b": 0.5, "c": 0.99}.items()):
        labels = {"liver": LabelScore(0.0, border, 0.0, 10.0)}
        folder.append(case, CaseScore("vit_t", 3, labels, np.eye(3, dtype=np.float32)[place]))
    return folder


def test_the_next_case_and_why(scores: ScoreFolder) -> None:
    lease: Any = {"client": "ann", "until": NOW.timestamp() + 1}
    over: Any = {"client": "ann", "until": NOW.timestamp() - 1}
    chooser = Chooser(scores, ("liver",), seed=0)
    ranking = chooser.ranking("entropy", "abcd", "abcd")
    found = next_case(ranking, {"c": lease, "b": over}, NOW)
    assert found is not None
    assert (found.case, found.rank, found.of) == ("b", 2, 4)
    assert found.reason == "0.25 bits of entropy on average."
    assert "ann" not in found.reason
    unknown = next_case(chooser.ranking("entropy", "d", "d"), {}, NOW)
    assert unknown is not None
    assert unknown.reason.startswith("Not scored yet")
    assert next_case(chooser.ranking("entropy", "c", "c"), {"c": lease}, NOW) is None
    assert next_case(chooser.ranking("entropy", "", ""), {}, NOW) is None


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0, 0), "There is no image here."),
        ((5, 0, 0), "All images have a label (5)."),
        ((5, 2, 0), "No unlabelled case is free: of 2, 2 are offered to others."),
        ((5, 3, 1), "No unlabelled case is free: of 3, 2 are offered to others and 1 cannot be read."),
    ],
)
def test_why_nobody_can_be_given_a_case(counts: tuple[int, int, int], said: str) -> None:
    assert why_none(*counts) == said


def test_the_picture_of_the_next_case(releases: Releases, scores: ScoreFolder) -> None:
    store = SimpleNamespace(image_signature=lambda case: "the file")
    scores.append("a/b", CaseScore("vit_t", 3, image="the file"))
    assert picture_link(scores, store, "a/b") is None
    assert picture_link(scores, store, None) is None
    scores.pictures.mkdir()
    scores.picture("a/b").write_bytes(b"x")
    assert picture_link(scores, store, "a/b") == "cases/a%2Fb/picture.png"
    scores.append("a/b", CaseScore("vit_t", 3, image="the file", error="MemoryError"))
    assert picture_link(scores, store, "a/b") is None, "it may be of another file"
    page = client_for(releases, STATE).get("/medsa/")
    assert '<img src="cases/x/picture.png"' in page.text
    assert "img-src 'self'" in page.headers["content-security-policy"]
    assert "Rank 3 of 7, border 0.25" in page.text


def test_how_far_scoring_is_in_words() -> None:
    assert scoring_text({}) == ""
    assert scoring_text({"scored": 3, "of": 5, "failed": 0, "examples": {}}) == (
        "3 of 5 unlabelled cases are scored by the version that serves."
    )
    said = scoring_text({"scored": 3, "of": 5, "failed": 1, "examples": {"x": "no volume"}})
    assert said.endswith("1 could not be: x: no volume")


def test_the_running_training() -> None:
    stats = {"running": True, "epoch": 40, "total_epochs": 100, "status": "training: step 3", "start_ts": 0}
    assert running_training(stats) == Running(40, "training: step 3", None, datetime(1970, 1, 1, tzinfo=UTC))
    assert running_training({**stats, "loss": 0.5, "start_ts": None}) == Running(
        40, "training: step 3", 0.5, None
    )
    assert running_training({**stats, "running": False}) is None
    assert running_training({}) is None


def test_where_a_rollback_can_go() -> None:
    state = {"versions": [0, 1, 2, 3, 4], "serving": 3, "rollback_to": 1}
    assert rollback_choices(state) == (1, 4, 2, 0)


def test_the_night_in_words() -> None:
    night = NightlySettings(at="02:00", time_zone="Europe/Berlin", max_hours=4)
    assert (
        nightly_text(night) == "Every night at 02:00 (Europe/Berlin) from the base, for 4 hours at the most."
    )
    assert nightly_text(None) == "No full retraining at night is set."


def test_the_next_case_of_a_pacs_can_be_opened_in_ohif(releases: Releases) -> None:
    info = {"1.2.3": {"StudyInstanceUID": "1.2&x"}, "case": {}}
    store = SimpleNamespace(get_image_info=lambda case: info[case])
    assert (
        ohif_link(store, "1.2.3") == "../ohif/monai-label?StudyInstanceUIDs=1.2%26x&SeriesInstanceUIDs=1.2.3"
    )
    assert ohif_link(store, "case") is None
    assert ohif_link(store, None) is None
    state = replace(STATE, next_case=NextCase("1.2.3", "why", link="../ohif/monai-label?a=1&b=2"))
    shown = client_for(releases, state).get("/medsa/").text
    assert '<a href="../ohif/monai-label?a=1&amp;b=2">Open it in OHIF</a>' in shown
    assert "OHIF" not in client_for(releases, EMPTY).get("/medsa/").text
