"""What of a PACS a browser reaches through the server: a real Orthanc behind the real routes."""

import base64
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from monailabel.config import settings
from pydantic import AnyHttpUrl
from starlette.testclient import TestClient

from lib.dicom.orthanc import Orthanc
from lib.errors import NotFoundError
from lib.server.proxy_routes import proxy_router, resource_path

ClientOf = Callable[[str], TestClient]
ROOT = "http://127.0.0.1:1/dicom-web"


@pytest.fixture
def client_of() -> Iterator[Callable[[str], TestClient]]:
    """client_of(studies) -> a server's client; as in a real one, all its requests are in one event loop."""
    with ExitStack() as running:

        def start(studies: str) -> TestClient:
            server = FastAPI()
            server.router.routes[0:0] = proxy_router(studies).routes
            return running.enter_context(TestClient(server, raise_server_exceptions=False))

        yield start


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("qido/studies", "studies"),
        ("wado/studies/1.2/series/1.3/metadata", "studies/1.2/series/1.3/metadata"),
        (
            "wado/studies/1.2/series/1.3/instances/1.4/frames/1,2",
            "studies/1.2/series/1.3/instances/1.4/frames/1,2",
        ),
        ("stow/studies", "studies"),
        ("instances", "instances"),
        ("studies/1 2", "studies/1%202"),
    ],
)
def test_resources_of_dicomweb_are_forwarded(path: str, target: str) -> None:
    assert resource_path(ROOT, path) == target


def test_prefixes_of_the_settings_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_QIDO_PREFIX", "qido-rs")
    monkeypatch.setattr(settings, "MONAI_LABEL_WADO_PREFIX", "wado-rs")
    assert resource_path(ROOT, "qido/studies") == "qido-rs/studies"
    assert resource_path(ROOT, "qido/studies/1.2/metadata") == "wado-rs/studies/1.2/metadata"


@pytest.mark.parametrize(
    "path",
    ["", "wado", "../instances", "wado/../system", "qido/studies/../../system", "patients", "studies/.."],
)
def test_the_rest_of_the_pacs_is_not_for_viewers(path: str) -> None:
    with pytest.raises(NotFoundError, match=r"path: .* allowed: wado, qido or stow, then one of studies"):
        resource_path(ROOT, path)


def test_a_folder_of_studies_has_no_pacs(client_of: ClientOf) -> None:
    answer = client_of("/data/studies").get("/proxy/dicom/qido/studies")
    assert answer.status_code == 404
    assert "a DICOMweb address" in answer.json()["detail"]


def test_a_pacs_that_is_away_is_said_to_be(client_of: ClientOf) -> None:
    answer = client_of(ROOT).get("/proxy/dicom/qido/studies")
    assert answer.status_code == 503
    assert answer.json()["detail"] == "the PACS cannot be reached (ConnectError)"


@pytest.fixture
def two_series(orthanc: Orthanc, make_series: Callable[..., Any], upload: Any) -> list[list[Path]]:
    found = [make_series("axial", seed=seed)[1] for seed in ("1", "2")]
    for files in found:
        upload(orthanc, files)
    return found


@pytest.mark.server
def test_the_query_string_reaches_the_pacs(
    client_of: ClientOf, orthanc: Orthanc, two_series: list[list[Path]]
) -> None:
    client = client_of(orthanc.url)
    everything = client.get("/proxy/dicom/qido/series").json()
    assert len(everything) == 2
    wanted = everything[0]["0020000E"]["Value"][0]
    found = client.get("/proxy/dicom/qido/series", params={"SeriesInstanceUID": wanted, "limit": "5"}).json()
    assert [one["0020000E"]["Value"][0] for one in found] == [wanted]


@pytest.mark.server
def test_pixels_come_as_they_are_and_can_be_sent(
    client_of: ClientOf, orthanc: Orthanc, two_series: list[list[Path]], upload: Any
) -> None:
    client = client_of(orthanc.url)
    (one, *_) = client.get("/proxy/dicom/qido/instances").json()
    study, series, instance = (one[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
    path = f"/proxy/dicom/wado/studies/{study}/series/{series}/instances/{instance}"
    answer = client.get(path, headers={"accept": 'multipart/related; type="application/dicom"'})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("multipart/related")
    assert b"DICM" in answer.content
    sent = client.post(
        "/proxy/dicom/wado/studies",
        content=answer.content,
        headers={"content-type": answer.headers["content-type"], "accept": "application/dicom+json"},
    )
    assert sent.status_code == 200, sent.text


@pytest.mark.server
def test_the_login_is_the_servers_and_is_in_no_log(
    client_of: ClientOf,
    orthanc: Orthanc,
    two_series: list[list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    orthanc.stop()
    orthanc.login = ("reader", "s3cret-word")
    orthanc.start()
    assert client_of(orthanc.url).get("/proxy/dicom/qido/series").status_code == 401
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "reader")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "s3cret-word")
    with caplog.at_level(logging.DEBUG):
        assert len(client_of(orthanc.url).get("/proxy/dicom/qido/series").json()) == 2
    for secret in ("s3cret-word", base64.b64encode(b"reader:s3cret-word").decode()):
        assert secret not in caplog.text


@pytest.mark.server
@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_pages_of_other_sites_get_nothing(
    client_of: ClientOf, orthanc: Orthanc, two_series: list[list[Path]], headers: dict[str, str]
) -> None:
    client = client_of(orthanc.url)
    assert client.get("/proxy/dicom/qido/series", headers=headers).status_code == 403
    sent = {**headers, "content-type": "application/json"}
    assert client.post("/proxy/dicom/stow/studies", content=b"{}", headers=sent).status_code == 403
    own = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
    assert client.get("/proxy/dicom/qido/series", headers=own).status_code == 200


@pytest.mark.server
def test_a_site_that_is_named_gets_what_it_asks_for(
    client_of: ClientOf, orthanc: Orthanc, two_series: list[list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", [AnyHttpUrl("https://viewer.example")])
    client = client_of(orthanc.url)
    for origin, status in (("https://viewer.example", 200), ("https://viewer.example.evil", 403)):
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        assert client.get("/proxy/dicom/qido/series", headers=headers).status_code == status
