"""/proxy/dicom: how a browser reaches the PACS, with this server's user and password, and no further.

MONAI Label's own drops the query string, so that every search finds everything, forwards any path, and holds up all
other requests meanwhile.

Concurrency: one client with its connections for all requests, used in the event loop only.
"""

from typing import Any
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from starlette.background import BackgroundTask

from lib.dicom.pacs import is_loopback
from lib.errors import NotFoundError, PacsUnreachableError
from lib.server.routing import Annotator, AnyUser, MedsaRoute, OwnSite

# What DICOMweb (PS3.18) has below its root.
RESOURCES = ("studies", "series", "instances", "bulkdata")
ASKED = ("accept", "accept-language", "content-type", "if-none-match", "range")
ANSWERED = (
    "content-type",
    "content-encoding",
    "content-length",
    "content-range",
    "etag",
    "last-modified",
    "warning",
)
TIMEOUT = httpx.Timeout(120.0, connect=5.0)


def proxy_router(studies: str, transport: httpx.AsyncBaseTransport | None = None) -> APIRouter:
    """The routes to the DICOMweb service `studies`; for a folder they say that there is none."""
    router = APIRouter(prefix="/proxy/dicom", route_class=MedsaRoute, include_in_schema=False)
    forward = _Forwarder(studies.rstrip("/"), transport)

    @router.get("/{path:path}")
    async def get(request: Request, path: str, user: AnyUser, own_site: OwnSite) -> Any:
        return await forward(request, path)

    @router.post("/{path:path}")
    async def post(request: Request, path: str, user: Annotator, own_site: OwnSite) -> Any:
        return await forward(request, path)

    return router


class _Forwarder:
    """Passes requests on and answers back, as they come: nothing is held in memory."""

    def __init__(self, root: str, transport: httpx.AsyncBaseTransport | None) -> None:
        self._root, self._transport = root, transport
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, request: Request, path: str) -> StreamingResponse:
        target = f"{self._root}/{resource_path(self._root, path)}"
        if request.url.query:
            target += f"?{request.url.query}"
        headers = {name: request.headers[name] for name in ASKED if name in request.headers}
        # Answers are passed on as they are, so only what the browser itself can read may be asked for.
        headers["accept-encoding"] = request.headers.get("accept-encoding", "identity")
        content = request.stream() if request.method == "POST" else None
        asked = self._connection().build_request(request.method, target, headers=headers, content=content)
        try:
            answer = await self._connection().send(asked, stream=True)
        except httpx.TransportError as error:
            raise PacsUnreachableError(f"the PACS cannot be reached ({type(error).__name__})") from error
        passed = {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, passed, background=BackgroundTask(answer.aclose)
        )

    def _connection(self) -> httpx.AsyncClient:
        if self._client is None:
            user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
            login = httpx.BasicAuth(user, password) if user and password else None
            # A proxy of the environment would be sent the password, and cannot reach this machine anyway.
            self._client = httpx.AsyncClient(
                auth=login, timeout=TIMEOUT, transport=self._transport, trust_env=not is_loopback(self._root)
            )
        return self._client


def resource_path(root: str, path: str) -> str:
    """The path below the PACS's root that a path below /proxy/dicom stands for, quoted.

    OHIF puts the kind of service before it, wado, qido or stow; MONAI Label's settings may have a prefix for each.
    Raises NotFoundError for what is no resource of DICOMweb: the rest of a PACS is not for every viewer.
    """
    if not root.startswith(("http://", "https://")):
        raise NotFoundError("studies", "a folder", "a DICOMweb address; OHIF shows what lies in a PACS")
    service, _, rest = path.partition("/")
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    prefix = prefixes.get(service)
    if service not in prefixes:
        rest = path
    elif service == "qido" and rest.endswith("metadata"):
        prefix = prefixes["wado"]  # OHIF asks the search service for it, which has none
    parts = rest.split("/")
    if parts[0] not in RESOURCES or not {".", "..", ""}.isdisjoint(parts[:-1]) or parts[-1] in (".", ".."):
        raise NotFoundError("path", path, f"wado, qido or stow, then one of {', '.join(RESOURCES)}")
    quoted = "/".join(quote(part, safe=",") for part in parts)
    return f"{prefix.strip('/')}/{quoted}" if prefix else quoted
