"""Puts medsa's own routes before MONAI Label's in the running FastAPI server."""

from typing import Any

from fastapi import FastAPI

from lib.server.body_limit import limit_bodies
from lib.server.datastore_routes import datastore_router
from lib.server.infer_routes import infer_router
from lib.server.loop import Housekeeping
from lib.server.parts import Parts
from lib.server.session_routes import session_router
from lib.server.task_routes import task_router


def add_routes(server: FastAPI, app: Any, parts: Parts, housekeeping: Housekeeping) -> None:
    """The first route that matches answers, so ours have to come first; the body limit is for all routes."""
    serving = parts.settings.serving
    routers = (
        infer_router(app, serving),
        session_router(app),
        datastore_router(app),
        task_router(app, parts, housekeeping),
    )
    server.router.routes[0:0] = [route for router in routers for route in router.routes]
    limit_bodies(server, serving.max_body_mb)
