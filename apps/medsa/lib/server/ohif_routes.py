"""OHIF as MONAI Label ships it, with medsa's configuration in place of its own.

Below apps/medsa/ohif lie what replaces OHIF's app-config.js and what that loads; the wheel is not touched.
"""

import re
from pathlib import Path
from typing import Any

import monailabel
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from lib.server.routing import AnyUser, MedsaRoute

SHIPPED = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif"
# Names with a hash of their content never change, and reloading the page for the next case needs 20 MB of them.
_HASHED = re.compile(r"\.[0-9a-f]{16,}\.js$|^[0-9a-f]{20}\.wasm$")
_FOREVER, _ASK = "public, max-age=31536000, immutable", "no-cache"
# The page and its style ask Google for a font: no hospital's viewer should tell anybody that it is used.
_ELSEWHERE = re.compile(
    r"<link[^>]+fonts\.(?:googleapis|gstatic)\.com[^>]*>|@import url\(https://fonts[^)]*\);"
)
_STYLE = "app.bundle.css"


def ohif_router(app_dir: Path, shipped: Path = SHIPPED) -> APIRouter:
    """The routes below /ohif/; every path that names no file is the page itself, which reads the path."""
    router = APIRouter(tags=["Others"], route_class=MedsaRoute, include_in_schema=False)
    ours, theirs = StaticFiles(directory=app_dir / "ohif"), StaticFiles(directory=shipped)
    page, style = (_ELSEWHERE.sub("", (shipped / name).read_text("utf-8")) for name in ("index.html", _STYLE))

    @router.get(f"/ohif/{_STYLE}")
    def ohif_style(user: AnyUser) -> Any:
        return Response(style, media_type="text/css", headers={"Cache-Control": _ASK})

    @router.get("/ohif")
    @router.get("/ohif/{path:path}")
    async def ohif(request: Request, user: AnyUser, path: str = "") -> Any:
        for folder in (ours, theirs):
            if path and path != "index.html" and (found := await _file(folder, path, request)) is not None:
                return found
        return HTMLResponse(page, headers={"Cache-Control": _ASK})

    return router


async def _file(folder: StaticFiles, path: str, request: Request) -> Response | None:
    """None where `folder` has no such file; what lies outside of it is none of its files."""
    try:
        answer = await folder.get_response(path, request.scope)
    except HTTPException:
        return None
    if isinstance(answer, FileResponse) or answer.status_code == 304:
        answer.headers["Cache-Control"] = _FOREVER if _HASHED.search(path) else _ASK
        return answer
    return None
