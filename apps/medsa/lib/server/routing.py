"""What all of medsa's own routes share: errors as answers, who asks, and uploaded files.

FastAPI runs plain functions in a thread pool, so that none of them holds up the others; MONAI Label's own
routes are coroutines around synchronous code, and do.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from starlette.exceptions import HTTPException

from lib.datastore.labelvalues import RAW_SUFFIXES
from lib.errors import BusyError, ClientGoneError, InputError, MedsaError, PacsError
from lib.volume import SUFFIXES

log = logging.getLogger(__name__)

AnyUser = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
Annotator = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
Admin = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]
SLICERS_DEFAULT = "user-xyz"  # of the setting "Client/User-ID" of its MONAI Label module
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", *RAW_SUFFIXES)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def check_own_page(request: Request) -> None:
    """Raises HTTPException 403 for a form that another site's page has sent: a browser would send it unasked.

    JSON from another site is not such a form: the browser asks this server first whether it may send it, and it may
    only for a site that MONAI_LABEL_CORS_ORIGINS names (`lib.server.routes`).
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not own:
        raise HTTPException(403, f"origin: {origin!r} is not accepted; allowed: this server's own page")


def check_own_site(request: Request) -> None:
    """Raises HTTPException 403 for whatever the page of a site has sent that MONAI_LABEL_CORS_ORIGINS does not name."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if origin in named_sites():
        return
    own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if site not in (None, "same-origin", "none") or not own:
        raise HTTPException(403, f"origin: {origin!r} is not accepted; allowed: this server's own page")


def named_sites() -> tuple[str, ...]:
    """The sites that MONAI_LABEL_CORS_ORIGINS names, as browsers do: MONAI Label has a slash at the end of each."""
    return tuple(str(site).rstrip("/") for site in settings.MONAI_LABEL_CORS_ORIGINS)


OwnPage = Annotated[None, Depends(check_own_page)]
OwnSite = Annotated[None, Depends(check_own_site)]


class MedsaRoute(APIRoute):
    """A route that answers every error as {"detail": text}, with the status that the error carries.

    A client is told what is wrong with its request. Of an error of the server's own it learns the type; the text,
    which may hold paths, is in the log.
    """

    def get_route_handler(self) -> Handler:
        """FastAPI's own handler, with errors turned into answers."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except (HTTPException, RequestValidationError):
                raise  # FastAPI answers these itself
            except BusyError as error:
                return _answer(error.http_status, str(error), {"Retry-After": str(error.retry_after_s)})
            except PacsError as error:
                log.warning("%s %s: %s", request.method, self.path, error)
                return _answer(error.http_status, str(error))
            except ClientGoneError as error:
                log.info("%s %s: %s", request.method, self.path, error)
                return _answer(error.http_status, str(error))
            except Exception as error:
                if isinstance(error, MedsaError) and error.http_status < 500:
                    return _answer(error.http_status, str(error))
                # The next request has to work whatever the model or a library does in this one.
                log.exception("%s %s failed", request.method, self.path)
                return _answer(500, f"internal error: {type(error).__name__}; the server's log has the rest")

        return handle


def json_object(field: str, text: str | None) -> dict[str, Any]:
    """A JSON object from a form field; empty when nothing came. Raises InputError for anything else."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # the latter for thousands of brackets
        value = text
    if not isinstance(value, dict):
        raise InputError(field, value, "a JSON object")
    return value


def author(user: User, params: dict[str, Any], request: Request) -> str:
    """Who asks: the account where there are accounts, else what the client calls itself, else its address.

    What 3D Slicer calls everybody who has not changed it is no name: the address is added.
    """
    if settings.MONAI_LABEL_AUTH_ENABLE:
        return user.username
    client, host = params.get("client_id"), request.client.host if request.client else ""
    if isinstance(client, str) and client:
        return f"{client} at {host}" if client == SLICERS_DEFAULT and host else client
    return f"host {host}" if host else "unknown"


def known_suffix(file_name: str, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """The suffix that a client's file name ends in; raises InputError for another one."""
    found = next((suffix for suffix in suffixes if file_name.endswith(suffix)), None)
    if found is None:
        raise InputError("file name", file_name, f"a name that ends in {', '.join(suffixes)}")
    return found


@contextmanager
def received(upload: UploadFile, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """The uploaded file under a name of our own with its suffix, for as long as the block lasts."""
    suffix = known_suffix(upload.filename or f"upload{suffixes[0]}", suffixes)
    with tempfile.TemporaryDirectory(prefix="medsa-") as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as stream:
            shutil.copyfileobj(upload.file, stream, 1 << 20)
        yield path


def received_label(upload: UploadFile) -> Any:
    """Like `received`, for label maps; raw voxels (.bin), as a browser sends them, are allowed too."""
    return received(upload, LABEL_SUFFIXES)


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status, headers=headers)
