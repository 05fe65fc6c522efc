"""Training, scoring, the next case and the server's own account of itself."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from monailabel.endpoints import scoring as scoring_endpoint
from monailabel.endpoints import train as train_endpoint

from lib.errors import InputError, NotFoundError, TrainingError
from lib.server.child_processes import stop_training
from lib.server.loop import Housekeeping, status
from lib.server.page import running_training, scoring_progress, why_no_case
from lib.server.parts import Parts, describe_base
from lib.server.routing import Admin, Annotator, AnyUser, MedsaRoute, OwnPage, author
from lib.server.store import pacs_status
from lib.settings import NIGHT_HOURS
from lib.trainers.medsa_trainer import MedsaTrainer
from lib.training.nightly import minutes_of
from lib.training.progress_file import read_progress
from lib.training.request import RunRequest
from lib.training.run import is_under_way

MODEL = "medsa"
Params = Annotated[dict[str, Any] | None, Body()]


def task_router(app: Any, parts: Parts, housekeeping: Housekeeping) -> APIRouter:
    """The routes, answered by `app`."""
    router = APIRouter(route_class=MedsaRoute)
    _add_training_routes(router, app, parts, housekeeping)

    @router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="Next case to label")
    def next_case(request: Request, strategy: str, user: AnyUser, params: Params = None) -> Any:
        given = params or {}
        found = app.next_sample({**given, "strategy": strategy, "client_id": author(user, given, request)})
        if not found:
            return {"message": why_no_case(parts, app.datastore())}
        return {**app.datastore().get_image_info(found["id"]), **found}

    @router.post("/scoring/{method}", tags=["Scoring"], summary="Score the cases")
    def score(method: str, user: Annotator, params: Params = None, run_sync: bool = False) -> Any:
        _check_name("method", method, app.info()["scoring"])
        _check_child(run_sync)
        return scoring_endpoint.run_method(method, params, run_sync)

    @router.get("/info/", tags=["App"], summary="Get App Info")
    def info(user: AnyUser) -> Any:
        # MONAI Label's own does this in the event loop, and it reads files and may wait for a label being saved.
        return app.info()

    @router.get("/medsa/status", tags=["medsa"], summary="Base, adapter version, queue and last training")
    def medsa_status(user: AnyUser) -> Any:
        about = describe_base(parts.serving) | status(parts, housekeeping)
        running = running_training(MedsaTrainer(parts.train, parts.state).stats())
        about["training_progress"] = running and {"percent": running.percent, "doing": running.doing}
        about["scores"] = scoring_progress(parts, app.datastore())
        return about | {"warming": parts.warmer.progress(), "pacs": pacs_status(app.datastore())}

    return router


def _add_training_routes(router: APIRouter, app: Any, parts: Parts, housekeeping: Housekeeping) -> None:
    @router.get("/train/", tags=["Train"], summary="Get Status of Training Task")
    def training_status(user: AnyUser, all: bool = False, check_if_running: bool = False) -> Any:
        return train_endpoint.status(all, check_if_running)

    @router.post("/train/", include_in_schema=False)
    def train_all(user: Admin, own_page: OwnPage, params: Params = None, run_sync: bool = False) -> Any:
        _check_child(run_sync)
        given = params or {}
        own = given.get(MODEL, {})
        if not isinstance(own, dict):
            raise InputError(MODEL, own, "a JSON object")
        request = _request_of_a_person({**given, **own}, app, parts)
        housekeeping.check_labels()
        with housekeeping.for_a_person():
            return {MODEL: {"result": train_endpoint.run_model(MODEL, request, False, False)}}

    @router.post("/train/{model}", tags=["Train"], summary="Run Training Task for specific model")
    def train(
        model: str,
        user: Admin,
        own_page: OwnPage,
        params: Params = None,
        run_sync: bool = False,
        enqueue: bool = False,
    ) -> Any:
        _check_name("model", model, app.info()["trainers"])
        _check_child(run_sync)
        request = _request_of_a_person(params or {}, app, parts)
        housekeeping.check_labels()
        with housekeeping.for_a_person():
            return train_endpoint.run_model(model, request, False, enqueue)

    @router.delete("/train/", tags=["Train"], summary="Stop Training Task")
    def stop(user: Admin) -> Any:
        housekeeping.note_stop()
        stopped = stop_training()
        if stopped is None and is_under_way(parts.state):
            pid = read_progress(parts.state).get("pid", "unknown")
            raise TrainingError(
                f"the training that runs is another program's (process {pid}); it is stopped there"
            )
        return stopped


def _request_of_a_person(given: dict[str, Any], app: Any, parts: Parts) -> dict[str, Any]:
    """What is asked for, whoever the client says it comes from; raises InputError before anything is started.

    A full run takes as long as a night's where nothing else is said.
    """
    asked = RunRequest.parse({**given, "trigger": "person"})
    if asked.until is not None and asked.until <= datetime.now(UTC):
        raise InputError("until", given["until"], "a moment to come")
    request = asked.to_json()
    if request["kind"] == "full" and request["minutes"] is None:
        night = parts.settings.training.nightly
        window = timedelta(hours=NIGHT_HOURS if night is None else night.max_hours)
        request["minutes"] = minutes_of(window, len(app.datastore().get_labeled_images()))
    # Nothing else is passed on: what MONAI Label cannot start a process with would be "about to begin" for ever.
    return request | ({"gpus": _checked_gpus(given["gpus"])} if given.get("gpus") else {})


def _checked_gpus(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"all|\d{1,3}(,\d{1,3})*", value):
        raise InputError("gpus", value, 'a text: "all", or numbers of GPUs with commas, as "0" or "0,1"')
    return value


def _check_child(run_sync: bool) -> None:
    if run_sync:
        raise InputError("run_sync", run_sync, "false; training and scoring run in processes of their own")


def _check_name(field: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        raise NotFoundError(field, name, ", ".join(known))
