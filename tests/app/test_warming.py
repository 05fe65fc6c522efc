"""A case that is opened is encoded before the first click, by the real server."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

CLICK = {"foreground": [[20, 18, 10]]}
WaitUntil = Callable[[Callable[[], bool], str], None]


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Any]) -> Any:
    return make_server(cases=3, auto_train="false")


def encoded_seconds(server: Any, image: str) -> float:
    answer = server.infer(CLICK, image=image, output="json")
    assert answer.status_code == 200
    return float(answer.json()["seconds"]["encode"])


def is_warm(server: Any, case: str) -> bool:
    now = server.status()["warming"]
    return now["case"] == case and 0 < now["of"] == now["done"]


@pytest.mark.parametrize(
    ("case", "opened"),
    [
        ("case0", lambda server: server.get("/datastore/image/info", image="case0")),
        ("case1", lambda server: server.get("/datastore/image", image="case1")),
    ],
)
def test_the_first_click_on_an_opened_case_encodes_nothing(
    server: Any, wait_until: WaitUntil, case: str, opened: Callable[[Any], Any]
) -> None:
    assert opened(server).status_code == 200
    wait_until(lambda: is_warm(server, case), f"{case} to be warm")
    assert encoded_seconds(server, case) == 0


def test_the_case_that_is_offered_is_opened(server: Any, wait_until: WaitUntil) -> None:
    offered = server.post("/activelearning/medsa", {"client_id": "ann"}).json()["id"]
    wait_until(lambda: is_warm(server, offered), "the offered case to be warm")
    assert encoded_seconds(server, offered) == 0


def test_a_click_warms_the_rest(server: Any, wait_until: WaitUntil) -> None:
    # A new image, which scoring cannot have encoded yet.
    content = (server.studies / "nrrdcase.nrrd").read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    with server.client() as client:
        sent = client.put("/datastore/image", params={"image": "new"}, files={"file": ("x.nrrd", changed)})
    assert sent.status_code == 200
    assert encoded_seconds(server, "new") > 0
    wait_until(lambda: is_warm(server, "new"), "the rest to be warm")


def test_without_warm_the_click_encodes(make_server: Callable[..., Any]) -> None:
    cold = make_server(cases=1, auto_train="false", warm="false")
    assert cold.get("/datastore/image/info", image="case0").status_code == 200
    assert encoded_seconds(cold, "case0") > 0
    assert cold.status()["warming"] == {"case": None, "done": 0, "of": 0, "waiting": 0}


def test_embeddings_outlive_the_server(make_server: Callable[..., Any]) -> None:
    first = make_server(cases=1, auto_train="false", warm="false")
    assert encoded_seconds(first, "case0") > 0
    first.stop()
    first.start()
    # Scoring has encoded all slices too by then, or not: the clicked ones are on disk in any case.
    assert encoded_seconds(first, "case0") == 0
