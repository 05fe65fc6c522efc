"""OHIF is served as it is shipped, but for its configuration."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from lib.server.ohif_routes import SHIPPED, ohif_router

APP = Path(__file__).resolve().parents[2] / "apps" / "medsa"


@pytest.fixture(scope="module")
def client() -> TestClient:
    server = FastAPI()
    server.router.routes[0:0] = ohif_router(APP).routes
    return TestClient(server, raise_server_exceptions=False)


def bundle() -> str:
    return next(path.name for path in SHIPPED.glob("app.bundle.*.js"))


def test_the_configuration_is_ours_and_is_asked_for_each_time(client: TestClient) -> None:
    answer = client.get("/ohif/app-config.js")
    assert answer.status_code == 200
    assert answer.text == (APP / "ohif" / "app-config.js").read_text()
    assert "javascript" in answer.headers["content-type"]
    assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["mode.js", "dock.js", "dock.css"])
def test_what_the_configuration_loads_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/ohif/medsa/{name}").text == (APP / "ohif" / "medsa" / name).read_text()


def test_bundles_are_the_wheels_and_never_change(client: TestClient) -> None:
    answer = client.get(f"/ohif/{bundle()}")
    assert answer.content == (SHIPPED / bundle()).read_bytes()
    assert "immutable" in answer.headers["cache-control"]
    again = client.get(f"/ohif/{bundle()}", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304


def test_files_in_folders_are_found(client: TestClient) -> None:
    name = next(path.name for path in (SHIPPED / "assets").iterdir() if path.suffix == ".png")
    assert client.get(f"/ohif/assets/{name}").content == (SHIPPED / "assets" / name).read_bytes()


@pytest.mark.parametrize(
    "path", ["", "/", "/monai-label?StudyInstanceUIDs=1.2", "/index.html", "/nothing/here.js"]
)
def test_every_other_path_is_the_page_which_asks_nobody_else_for_anything(
    client: TestClient, path: str
) -> None:
    answer = client.get(f"/ohif{path}")
    assert answer.status_code == 200
    assert "<title>OHIF Viewer</title>" in answer.text
    assert "app-config.js" in answer.text
    assert "google" not in answer.text
    assert "gstatic" not in answer.text


@pytest.mark.parametrize(
    "path", ["..%2Fmain.py", "%2e%2e/main.py", "medsa/..%2f..%2f..%2fmain.py", "%2Fetc%2Fhostname"]
)
def test_no_other_file_of_the_server_is_served(client: TestClient, path: str) -> None:
    answer = client.get(f"/ohif/{path}")
    assert "<title>OHIF Viewer</title>" in answer.text
