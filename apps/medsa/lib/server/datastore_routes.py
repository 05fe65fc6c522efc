"""The /datastore routes: images and labels by id, never by path."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from monailabel.endpoints import datastore as endpoint

from lib.datastore.names import check_tag
from lib.datastore.versions import saved_by_others, seen_version
from lib.errors import NotFoundError
from lib.server.routing import (
    Admin,
    Annotator,
    AnyUser,
    MedsaRoute,
    author,
    json_object,
    known_suffix,
    received,
    received_label,
)
from lib.server.store import delivery

FINAL = "final"


def datastore_router(app: Any) -> APIRouter:
    """The routes, answered by the datastore of `app`."""
    router = APIRouter(prefix="/datastore", tags=["Datastore"], route_class=MedsaRoute)
    _add_image_routes(router, app)
    _add_label_routes(router, app)
    _add_info_routes(router, app)
    return router


def _add_image_routes(router: APIRouter, app: Any) -> None:
    store = app.datastore()

    @router.get("/image", summary="Download Image")
    def get_image(image: str, user: AnyUser) -> Any:
        app.opened(store.image_path(image))
        return endpoint.download_image(image)

    @router.head("/image", summary="Check If Image Exists")
    def head_image(image: str, user: AnyUser, check_sum: str | None = None) -> Any:
        store.image_path(image)
        return endpoint.download_image(image, check_only=True, check_sum=check_sum)

    @router.put("/", include_in_schema=False)
    @router.put("/image", summary="Upload new Image")
    def put_image(
        request: Request,
        user: Annotator,
        file: Annotated[UploadFile, File()],
        image: str | None = None,
        params: Annotated[str, Form()] = "{}",
    ) -> Any:
        info = json_object("params", params)
        name = Path(file.filename or "").name
        image_id = image or name.removesuffix(known_suffix(name))
        with received(file) as path:
            saved = store.add_image(image_id, str(path), {**info, "user": author(user, info, request)})
        return {"image": saved}

    @router.delete("/", include_in_schema=False)
    @router.delete("/image", summary="Remove Image and corresponding labels")
    def delete_image(id: str, user: Admin) -> Any:
        store.remove_image(id)
        return {}

    @router.get("/dataset", summary="Download full dataset as ZIP archive")
    def get_dataset(user: Annotator, limit_cases: int | None = None) -> Any:
        if not store.get_labeled_images():
            raise NotFoundError("dataset", "no labelled image", "a datastore with at least one final label")
        return endpoint.download_dataset(limit_cases)


def _add_label_routes(router: APIRouter, app: Any) -> None:
    store = app.datastore()

    @router.put("/label", summary="Save Finished Label")
    def put_label(
        request: Request,
        user: Annotator,
        image: str,
        label: Annotated[UploadFile, File()],
        params: Annotated[str, Form()] = "{}",
        tag: str = FINAL,
    ) -> Any:
        info = json_object("params", params)
        tag = check_tag(tag or FINAL)
        store.image_path(image)
        seen, own = seen_version(info), author(user, info, request)
        with received_label(label) as path:
            version = store.save_version(image, str(path), tag, {**info, "user": own})
        if tag == FINAL:
            app.on_save_label(image, image)
        # MONAI Label's own two, and for those who ask further what became of it and who else was at it.
        others = saved_by_others(store.history.versions(image), own, seen, version)
        saved = {"version": version, "others": others, "pacs": delivery(store, image, version)}
        return {"image": image, "label": image, **saved}

    @router.get("/label", summary="Download Label")
    def get_label(label: str, tag: str, user: AnyUser) -> Any:
        store.label_path(label, tag)
        return endpoint.download_label(label, tag)

    @router.head("/label", summary="Check If Label Exists")
    def head_label(image: str, tag: str, user: AnyUser) -> Any:
        store.label_path(image, tag)
        return {}

    @router.delete("/label", summary="Remove Label")
    def delete_label(id: str, tag: str, user: Admin) -> Any:
        store.remove_label(id, tag)
        return {}


def _add_info_routes(router: APIRouter, app: Any) -> None:
    store = app.datastore()

    @router.get("/", summary="Get All Images/Labels from datastore")
    def get_datastore(user: AnyUser, output: endpoint.ResultType | None = None) -> Any:
        return endpoint.datastore(output)

    @router.get("/image/info", summary="Get Image Info")
    def get_image_info(image: str, user: AnyUser) -> Any:
        app.opened(store.image_path(image))
        return store.get_image_info(image)

    @router.put("/image/info", summary="Update Image Info")
    def put_image_info(image: str, user: Annotator, info: Annotated[str, Form()] = "{}") -> Any:
        return store.update_image_info(image, json_object("info", info))

    @router.get("/label/info", summary="Get Label Info")
    def get_label_info(label: str, tag: str, user: AnyUser) -> Any:
        store.label_path(label, tag)
        return store.get_label_info(label, tag)

    @router.put("/label/info", summary="Update Label Info")
    def put_label_info(label: str, tag: str, user: Annotator, info: Annotated[str, Form()] = "{}") -> Any:
        return store.update_label_info(label, tag, json_object("info", info))

    @router.put("/updatelabelinfo", include_in_schema=False)
    def put_label_info_old(
        label: str, tag: str, user: Annotator, params: Annotated[str, Form()] = "{}"
    ) -> Any:
        return store.update_label_info(label, tag, json_object("params", params))
