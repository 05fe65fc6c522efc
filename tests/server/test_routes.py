"""Which pages may use the server through somebody's browser."""

import pytest
from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from monailabel.config import settings
from pydantic import AnyHttpUrl
from starlette.testclient import TestClient

from lib.server.routes import keep_other_sites_out

ASKED = {"origin": "http://elsewhere.example", "access-control-request-method": "PUT"}


def open_server() -> FastAPI:
    """As MONAI Label makes its own: every site may do everything."""
    everything = {
        "allow_origins": ["*"],
        "allow_credentials": True,
        "allow_methods": ["*"],
        "allow_headers": ["*"],
    }
    server = FastAPI(middleware=[Middleware(CORSMiddleware, **everything)])

    @server.get("/datastore/")
    def datastore() -> dict[str, str]:
        return {"images": "all of them"}

    return server


def test_another_site_may_neither_read_nor_write() -> None:
    server = open_server()
    keep_other_sites_out(server)
    client = TestClient(server)
    assert client.options("/datastore/", headers=ASKED).status_code == 400
    answer = client.get("/datastore/", headers={"origin": "http://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_sites_that_the_settings_name_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", [AnyHttpUrl("http://elsewhere.example")])
    server = open_server()
    keep_other_sites_out(server)
    client = TestClient(server)
    assert client.options("/datastore/", headers=ASKED).status_code == 200
    for site, allowed in (
        ("http://elsewhere.example", "http://elsewhere.example"),
        ("http://other.example", None),
    ):
        answer = client.get("/datastore/", headers={"origin": site})
        assert answer.headers.get("access-control-allow-origin") == allowed
