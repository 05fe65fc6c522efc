"""Puts medsa's own routes before MONAI Label's in the running FastAPI server."""

from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from lib.server.body_limit import limit_bodies
from lib.server.case_routes import case_router
from lib.server.datastore_routes import datastore_router
from lib.server.infer_routes import infer_router
from lib.server.loop import Housekeeping
from lib.server.ohif_routes import ohif_router
from lib.server.page import page_state
from lib.server.page_routes import page_router
from lib.server.parts import Parts
from lib.server.proxy_routes import proxy_router
from lib.server.queue_view import QueueView
from lib.server.release_routes import release_router
from lib.server.routing import named_sites
from lib.server.session_routes import session_router
from lib.server.task_routes import task_router


def add_routes(server: FastAPI, app: Any, parts: Parts, housekeeping: Housekeeping) -> None:
    """The first route that matches answers, so ours have to come first; the body limit is for all routes."""
    serving, store = parts.settings.serving, app.datastore()
    shown = partial(page_state, parts, store, QueueView(parts, store), housekeeping)
    routers = (
        infer_router(app, serving),
        session_router(app),
        datastore_router(app),
        task_router(app, parts, housekeeping),
        release_router(parts.releases),
        page_router(parts.releases, parts.app_dir / "templates", shown),
        case_router(app, dict(parts.settings.task.labels), parts.leases, parts.scores),
        ohif_router(parts.app_dir),
        proxy_router(app.studies),
    )
    keep_other_sites_out(server)
    server.router.routes[0:0] = [route for router in routers for route in router.routes]
    limit_bodies(server, serving.max_body_mb)


def keep_other_sites_out(server: FastAPI) -> None:
    """Pages of other sites may use the server only where MONAI_LABEL_CORS_ORIGINS names them.

    MONAI Label lets every site, by default, read all that a browser of this network can reach: images and labels.
    """
    for middleware in server.user_middleware:
        if middleware.cls is CORSMiddleware:
            middleware.kwargs["allow_origins"] = named_sites()
