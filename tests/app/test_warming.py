"""Opening a case encodes it before the first click, against the real server."""

from collections.abc import Callable
from typing import Any

import pytest

from lib.volume import load_volume

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

CLICK = {"foreground": [[20, 18, 10]], "background": []}
SLICES = 20
IDLE = {"case": None, "done": 0, "of": 0, "waiting": 0}
MakeServer = Callable[..., Any]
WaitUntil = Callable[[Callable[[], bool], str], None]


@pytest.fixture(scope="module")
def server(make_server: MakeServer) -> Any:
    # Without the disk, which scoring fills too: what is there was encoded by this server.
    return make_server(cases=6, auto_train="false", embedding_disk_mb="0")


def encode_seconds(server: Any, **query: str) -> float:
    answer = server.infer(CLICK, output="json", **query)
    assert answer.status_code == 200, answer.text
    return float(answer.json()["seconds"]["encode"])


def warming(server: Any) -> dict[str, Any]:
    return dict(server.status()["warming"])


def until_warm(server: Any, wait_until: WaitUntil, case: str) -> None:
    whole = {"case": case, "done": SLICES, "of": SLICES, "waiting": 0}
    wait_until(lambda: warming(server) == whole, f"{case} to be encoded")


def is_done(server: Any) -> bool:
    """Whether nothing waits, whichever case was the last."""
    now = warming(server)
    return now["waiting"] == 0 < now["of"] == now["done"]


@pytest.mark.parametrize(
    ("path", "case"), [("/datastore/image/info", "case0"), ("/datastore/image", "case1")]
)
def test_an_image_that_is_asked_for_is_encoded(
    server: Any, wait_until: WaitUntil, path: str, case: str
) -> None:
    assert server.get(path, image=case).status_code == 200
    until_warm(server, wait_until, case)
    assert encode_seconds(server, image=case) == 0


def test_the_next_case_is_encoded(server: Any, wait_until: WaitUntil) -> None:
    case = server.post("/activelearning/first", {"client_id": "ann"}).json()["id"]
    until_warm(server, wait_until, case)
    assert encode_seconds(server, image=case) == 0


def test_a_sessions_image_is_encoded(server: Any, wait_until: WaitUntil) -> None:
    path = server.studies / "case4.nii.gz"
    with server.client() as client:
        answer = client.put("/session/", files={"files": (path.name, path.read_bytes())})
    assert answer.status_code == 200
    image = answer.json()["session_info"]["image"].rsplit("/", 1)[-1].removesuffix(".nii.gz")
    until_warm(server, wait_until, image)
    assert encode_seconds(server, session_id=answer.json()["session_id"]) == 0


def test_the_rest_is_encoded_after_a_first_click(server: Any, wait_until: WaitUntil) -> None:
    model = {"model": "medsa_2d"}
    assert server.infer(CLICK, image="case5", output="json", **model).json()["seconds"]["encode"] > 0
    until_warm(server, wait_until, "case5")
    assert encode_seconds(server, image="case5") == 0


def test_whether_there_is_an_image_is_no_opening(server: Any) -> None:
    before = warming(server)
    with server.client() as client:
        assert client.head("/datastore/image", params={"image": "case2"}).status_code == 200
    assert encode_seconds(server, image="case2") > 0
    assert before["case"] != "case2"


def test_an_image_that_cannot_be_read_does_not_end_the_encoding(server: Any, wait_until: WaitUntil) -> None:
    bad = server.studies / "broken.nii.gz"
    bad.write_bytes(b"no image")
    try:
        wait_until(
            lambda: server.get("/datastore/image/info", image="broken").status_code == 200,
            "the file to be seen",
        )
        log = server.state.parent / "server.log"
        wait_until(
            lambda: "case broken is not encoded ahead" in log.read_text(errors="replace"),
            "it to be passed over",
        )
        server.get("/datastore/image/info", image="case3")
        wait_until(lambda: is_done(server), "all to be encoded")
        assert encode_seconds(server, image="case3") == 0
    finally:
        bad.unlink()


def test_a_published_version_is_warm_where_people_are(
    make_server: MakeServer, wait_until: WaitUntil, publish_adapter: Callable[..., None]
) -> None:
    server = make_server(cases=2, auto_train="false", embedding_disk_mb="0")
    assert server.get("/datastore/image/info", image="case1").status_code == 200
    until_warm(server, wait_until, "case1")
    publish_adapter(server)
    wait_until(lambda: server.status()["version"] == 1, "the new version to serve")
    # Those of the version before are still there: twice as many, without anybody asking.
    wait_until(
        lambda: server.status()["embedding_cache"]["slices"] >= 2 * SLICES and is_done(server),
        "case1 to be encoded again",
    )
    assert encode_seconds(server, image="case1") == 0
    assert server.version_of_answer("case1") == 1


@pytest.mark.parametrize("conf", [{"warm": "false"}, {"embedding_cache_mb": "0", "embedding_disk_mb": "0"}])
def test_it_can_be_switched_off(make_server: MakeServer, conf: dict[str, str]) -> None:
    server = make_server(cases=1, auto_train="false", **conf)
    assert server.get("/datastore/image/info", image="case0").status_code == 200
    assert load_volume(server.studies / "case0.nii.gz").shape_ijk[2] == SLICES
    assert encode_seconds(server, image="case0") > 0
    assert warming(server) == IDLE


def test_embeddings_outlive_the_server(make_server: MakeServer) -> None:
    server = make_server(cases=1, auto_train="false", warm="false")
    assert encode_seconds(server, image="case0") > 0
    server.stop()
    server.start()
    # Scoring has encoded all slices too by then, or not: the clicked ones are on disk in any case.
    assert encode_seconds(server, image="case0") == 0
