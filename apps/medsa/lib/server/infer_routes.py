"""POST /infer/{model}: one answer to one viewer's prompts.

Concurrency. The route is a coroutine that only waits: for the body, for the answer, and for the client to leave. All
work is done by threads of its own, as many as there are places in the queue, so that the threads which other routes
use for downloads and saves stay free. Which of them may use the model is up to `lib.turns`.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Request, Response
from fastapi.responses import JSONResponse
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import get_mime_type

from lib.errors import InputError, NotFoundError
from lib.server.admission import Admission
from lib.server.infer_form import FORM_SCHEMA, InferForm, infer_form
from lib.server.routing import AnyUser, MedsaRoute, author, json_object, received, received_label
from lib.server.session_routes import open_session
from lib.settings import ServingSettings
from lib.turns import Asker


@dataclass(frozen=True)
class Asked:
    """All that came with one request; `deadline` is in monotonic seconds, `gone` is set when the client leaves."""

    request: Request
    user: User
    model: str
    image: str
    session_id: str
    output: ResultType | None
    form: InferForm
    deadline: float
    gone: threading.Event


def infer_router(app: Any, serving: ServingSettings) -> APIRouter:
    """The route, answered by `app` within the limits of `serving`."""
    router = APIRouter(tags=["Infer"], route_class=MedsaRoute)
    admission = Admission(serving.queue_length)
    threads = ThreadPoolExecutor(serving.queue_length, thread_name_prefix="medsa-infer")
    limit_s = serving.request_seconds

    @router.post(
        "/infer/{model}",
        summary="Run Inference for supported model",
        openapi_extra={"requestBody": FORM_SCHEMA},
    )
    async def infer(
        request: Request,
        model: str,
        user: AnyUser,
        image: str = "",
        session_id: str = "",
        output: ResultType | None = None,
    ) -> Response:
        if output == ResultType.dicom_seg:
            raise InputError("output", output.value, "image, json or all")
        deadline, gone = time.monotonic() + limit_s, threading.Event()
        with admission.place():  # before the body, so that what waits is bounded whatever it sends
            async with infer_form(request, limit_s) as form, _noticing_departure(request, gone):
                asked = Asked(request, user, model, image, session_id, output, form, deadline, gone)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(threads, _answer, app, asked, limit_s)

    _add_refusals(router)
    return router


def _add_refusals(router: APIRouter) -> None:
    @router.post("/wsi_infer/{model}", include_in_schema=False)
    def infer_slide(model: str, user: AnyUser) -> Any:
        raise NotFoundError("model", model, "no task for whole-slide images here; use /infer/")

    @router.post("/batch/infer/{model}", include_in_schema=False)
    def infer_batch(model: str, user: AnyUser) -> Any:
        raise InputError(
            "model", model, "no batches; POST /infer/medsa_auto answers one image without clicks"
        )


@asynccontextmanager
async def _noticing_departure(request: Request, gone: threading.Event) -> AsyncIterator[None]:
    """Sets `gone` when the client leaves; the body has to be read by then. Set in any case at the end of the block."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        gone.set()  # a server that stops leaves its clients, too


def _answer(app: Any, asked: Asked, limit_s: float) -> Response:
    """The whole work for one request; leaves no file behind. Raises what the task raises."""
    params = json_object("params", asked.form.params)
    client = author(asked.user, params, asked.request)
    asker = Asker(client, deadline=asked.deadline, gone=asked.gone, limit_s=limit_s)
    # A client's params cannot name a model or a file of the server.
    params.pop("label_file", None)
    with ExitStack() as files:
        known = {"model": asked.model, "image": _source(app, asked, files), "asker": asker}
        known["uploaded"] = asked.form.file is not None
        if asked.form.label is not None:
            known["label_file"] = files.enter_context(received_label(asked.form.label))
        result = app.infer({**params, **known})
    return _response(app, result, asked.output)


def _source(app: Any, asked: Asked, files: ExitStack) -> str | Path:
    """The image id, or the path of a file that this server itself has put there."""
    if asked.form.file is not None:
        return files.enter_context(received(asked.form.file))
    if asked.session_id:
        return Path(open_session(app, asked.session_id).image)
    if not asked.image:
        raise InputError("image", asked.image, "an image id, a session_id or an uploaded file")
    return asked.image


def _who_answered(result: dict[str, Any]) -> dict[str, str]:
    """What the bare mask that OHIF gets says of the weights behind it: base, adapter version and seconds."""
    params = result.get("params", {})
    said = {
        "medsa-base": params.get("base"),
        "medsa-version": params.get("version"),
        "medsa-seconds": params.get("seconds", {}).get("total"),
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def _response(app: Any, result: dict[str, Any], output: ResultType | None) -> Response:
    path = Path(result["file"])
    try:
        if output == ResultType.image:
            # Read here: sent from the file, it would go through the other routes' threads, 64 kB at a time.
            headers = {"content-disposition": f'attachment; filename="{path.name}"', **_who_answered(result)}
            return Response(path.read_bytes(), media_type=get_mime_type(str(path)), headers=headers)
        answer = send_response(app.datastore(), result, output, BackgroundTasks())
        return answer if isinstance(answer, Response) else JSONResponse(answer)
    finally:
        path.unlink(missing_ok=True)
