"""The page at /medsa/: how the loop stands, for people with a browser. It loads nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lib.errors import InputError
from lib.server.page import PageState
from lib.server.release_routes import time_text, utc_now
from lib.server.routing import Admin, AnyUser, MedsaRoute, OwnPage, author
from lib.training.releases import Releases

SEE_OTHER = 303


def page_router(
    releases: Releases,
    templates: Path,
    state: Callable[[datetime], PageState],
    now: Callable[[], datetime] = utc_now,
) -> APIRouter:
    """The routes; `state(now)` is what the page made of the files in `templates` shows."""
    router = APIRouter(prefix="/medsa", tags=["medsa"], route_class=MedsaRoute, include_in_schema=False)
    render = page_renderer(templates)

    @router.get("")
    def without_slash(user: AnyUser) -> Any:
        # The page's own links are relative, so that they work behind a proxy with a prefix.
        return RedirectResponse("medsa/")

    @router.get("/")
    def page(user: AnyUser) -> Any:
        return render(state(now()))

    @router.post("/rollback")
    def roll_back(
        request: Request, user: Admin, own_page: OwnPage, version: Annotated[str, Form()] = ""
    ) -> Any:
        if version and not (version.isascii() and version.isdecimal() and len(version) < 10):
            raise InputError(
                "version", version, "the number of a version, or nothing for the one that served before"
            )
        releases.rollback(int(version) if version else None, time_text(now()), author(user, {}, request))
        return RedirectResponse("./", status_code=SEE_OTHER)

    return router


def page_renderer(templates: Path) -> Callable[[PageState], HTMLResponse]:
    """Makes the document of a state; only its own script and style may run in it."""
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((templates / name).read_text("utf-8") for name in ("page.css", "page.js"))
    headers = {
        "Content-Security-Policy": (
            "default-src 'none'; connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
            "frame-ancestors 'self'; "
            f"style-src {_source(style)}; script-src {_source(script)}"
        ),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }

    def render(state: PageState) -> HTMLResponse:
        document = environment.get_template("page.html").render(page=state, style=style, script=script)
        return HTMLResponse(document, headers=headers)

    return render


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
