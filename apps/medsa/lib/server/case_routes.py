"""The /medsa/cases routes: what a viewer needs to know of a case that somebody has opened."""

import gzip
from typing import Any

import numpy as np
from fastapi import APIRouter, Response

from lib.datastore.versions import FINAL, final_versions
from lib.errors import NotFoundError
from lib.server.routing import AnyUser, MedsaRoute
from lib.volume import load_label, load_volume

# Masks are mostly zeros: the fastest level makes them small.
LEVEL = 1


def case_router(app: Any, labels: dict[str, int]) -> APIRouter:
    """The routes, answered by the datastore of `app`."""
    router = APIRouter(prefix="/medsa/cases", tags=["medsa"], route_class=MedsaRoute)
    store = app.datastore()

    @router.get("/{image}", summary="A case's saved labels: number, author, time and adapter version of each")
    def case(image: str, user: AnyUser) -> Any:
        if image not in store.list_images():
            raise NotFoundError("image", image, "one of the image ids of this server")
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

    return router
