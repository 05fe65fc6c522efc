"""POST /infer/{model}: one answer to one viewer's prompts."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, File, Form, UploadFile
from monailabel.endpoints.infer import ResultType, send_response

from lib.errors import InputError, NotFoundError
from lib.server.routing import AnyUser, MedsaRoute, json_object, received

_SESSION_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


def infer_router(app: Any) -> APIRouter:
    """The route, answered by `app`."""
    router = APIRouter(tags=["Infer"], route_class=MedsaRoute)

    @router.post("/infer/{model}", summary="Run Inference for supported model")
    def infer(
        background_tasks: BackgroundTasks,
        model: str,
        user: AnyUser,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        label: Annotated[UploadFile | None, File()] = None,
        output: ResultType | None = None,
    ) -> Any:
        if output == ResultType.dicom_seg:
            raise InputError("output", output.value, "image, json or all")
        if label is not None:
            raise InputError("label", label.filename, "no label map; medsa takes clicks and boxes")
        request = json_object("params", params)
        with ExitStack() as files:
            # What the server knows comes last: a client's params cannot name a model or a file of the server.
            request |= {"model": model, "image": _source(app, image, session_id, file, files)}
            result = app.infer(request)
        return send_response(app.datastore(), result, output, background_tasks)

    @router.post("/wsi_infer/{model}", include_in_schema=False)
    def infer_slide(model: str, user: AnyUser) -> Any:
        raise NotFoundError("model", model, "no task for whole-slide images here; use /infer/")

    @router.post("/batch/infer/{model}", include_in_schema=False)
    def infer_batch(model: str, user: AnyUser) -> Any:
        raise InputError("model", model, "a task that needs no clicks, and there is none yet")

    return router


def _source(app: Any, image: str, session_id: str, file: UploadFile | None, files: ExitStack) -> str | Path:
    """The image id, or the path of a file that this server itself has put there."""
    if file is not None:
        return files.enter_context(received(file))
    if session_id:
        return _session_image(app, session_id)
    if not image:
        raise InputError("image", image, "an image id, a session_id or an uploaded file")
    return image


def _session_image(app: Any, session_id: str) -> Path:
    sessions = app.sessions()
    session = sessions.get_session(session_id) if sessions and _SESSION_ID.fullmatch(session_id) else None
    if session is None:
        raise NotFoundError("session_id", session_id, "the id of a session that is open")
    return Path(session.image)
