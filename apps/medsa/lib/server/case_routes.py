"""The /medsa/cases routes: what a viewer needs to know of a case that somebody has opened."""

import gzip
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, Request, Response

from lib.activelearning.leases import Leases
from lib.datastore.versions import FINAL, final_versions
from lib.errors import NotFoundError
from lib.scoring.scores import ScoreFolder
from lib.server.routing import Annotator, AnyUser, MedsaRoute, OwnPage, author
from lib.volume import load_label, load_volume

# Masks are mostly zeros: the fastest level makes them small.
LEVEL = 1


Params = Annotated[dict[str, Any] | None, Body()]


def case_router(
    app: Any,
    labels: dict[str, int],
    leases: Leases,
    scores: ScoreFolder,
    now: Callable[[], float] = time.time,
) -> APIRouter:
    """The routes, answered by the datastore of `app`."""
    router = APIRouter(prefix="/medsa/cases", tags=["medsa"], route_class=MedsaRoute)
    store = app.datastore()

    @router.get("/{image}", summary="A case's saved labels: number, author, time and adapter version of each")
    def case(image: str, user: AnyUser) -> Any:
        _check_image(store, image)
        return {"image": image, "labels": final_versions(store.history.versions(image))}

    @router.get(
        "/{image}/label",
        summary="The current label as raw voxels: uint8, i fastest, values as /info/ has them, gzip",
        response_class=Response,
    )
    def label(image: str, user: AnyUser) -> Response:
        volume, path = load_volume(store.image_path(image)), store.label_path(image, FINAL)
        # Before the voxels: should somebody save in between, a viewer knows too little, and not too much.
        version = store.get_label_info(image, FINAL).get("version", 0)
        values = load_label(path, volume, labels)
        body = gzip.compress(np.asarray(values, np.uint8).tobytes(order="F"), compresslevel=LEVEL)
        headers = {
            "content-encoding": "gzip",
            "medsa-label-version": str(version),
            "cache-control": "no-store",
        }
        return Response(body, media_type="application/octet-stream", headers=headers)

    _add_offer_routes(router, store, leases, scores, now)
    return router


def _add_offer_routes(
    router: APIRouter, store: Any, leases: Leases, scores: ScoreFolder, now: Callable[[], float]
) -> None:
    @router.post("/{image}/give-back", summary="Another case instead of this one, which is offered to others")
    def give_back(
        request: Request, image: str, user: Annotator, own_page: OwnPage, params: Params = None
    ) -> Any:
        _check_image(store, image)
        client = author(user, params or {}, request)
        leases.give_back(image, client, now())
        return {"image": image, "client_id": client}

    @router.get(
        "/{image}/picture.png",
        summary="The slice of a case of which the model is least sure, with outlines and doubt",
        response_class=Response,
    )
    def picture(image: str, user: AnyUser) -> Response:
        _check_image(store, image)
        if not scores.has_picture(image, store.image_signature(image)):
            raise NotFoundError("image", image, "a case that was scored")
        content = scores.picture(image).read_bytes()
        return Response(content, media_type="image/png", headers={"cache-control": "no-store"})


def _check_image(store: Any, image: str) -> None:
    if image not in store.list_images():
        raise NotFoundError("image", image, "one of the image ids of this server")
