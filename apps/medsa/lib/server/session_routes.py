"""The /session routes: an image that a viewer brings along, kept until nobody has used it for an hour."""

import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, UploadFile
from fastapi.responses import FileResponse
from monailabel.utils.others.generic import get_mime_type
from monailabel.utils.sessions import SessionInfo, Sessions
from starlette.exceptions import HTTPException

from lib.errors import InputError, NotFoundError
from lib.server.routing import AnyUser, MedsaRoute, received
from lib.volume import load_volume

_SESSION_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


def session_router(app: Any) -> APIRouter:
    """The routes, answered by the sessions of `app`."""
    router = APIRouter(prefix="/session", tags=["Session"], route_class=MedsaRoute)

    @router.put("/", summary="Create new session with Image")
    def put_session(
        user: AnyUser, files: Annotated[list[UploadFile], File()], uncompress: bool = False, expiry: int = 0
    ) -> Any:
        sessions = _enabled(app)
        if uncompress:
            raise InputError("uncompress", uncompress, "false; the image is sent as it is")
        if len(files) != 1:
            raise InputError("files", f"{len(files)} files", "one file with the whole image")
        with received(files[0]) as path:
            load_volume(path)  # now, and not at the first click, is when the viewer can say what is wrong
            session_id, session = sessions.add_session(str(path), expiry)
        app.opened(Path(session.image))
        return {"session_id": session_id, "session_info": session.to_json()}

    @router.get("/{session_id}", summary="Get Session ID")
    def get_session(session_id: str, user: AnyUser, update_ts: bool = False, image: bool = False) -> Any:
        _enabled(app)
        session = open_session(app, session_id, update_ts)
        if not image:
            return session.to_json()
        path = Path(session.image)
        return FileResponse(path, media_type=get_mime_type(str(path)), filename=path.name)

    @router.delete("/{session_id}", summary="Delete Session")
    def delete_session(session_id: str, user: AnyUser) -> Any:
        sessions = _enabled(app)
        session = open_session(app, session_id)
        sessions.remove_session(session_id)
        return session.to_json()

    return router


def open_session(app: Any, session_id: str, update_ts: bool = True) -> SessionInfo:
    """The session, used just now if `update_ts`; raises NotFoundError for one that is not open."""
    sessions = app.sessions()
    known = sessions is not None and _SESSION_ID.fullmatch(session_id)
    session = sessions.get_session(session_id, update_ts=update_ts) if known else None
    if session is None:
        raise NotFoundError("session_id", session_id, "the id of a session that is open")
    return session


def _enabled(app: Any) -> Sessions:
    sessions = app.sessions()
    if sessions is None:
        raise HTTPException(406, "sessions are switched off on this server (MONAI_LABEL_SESSIONS)")
    return sessions
