"""The /medsa/releases routes: the versions and what made them, rolling back and pruning."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from lib.errors import InputError, NotFoundError
from lib.server.routing import Admin, AnyUser, MedsaRoute, OwnPage, author
from lib.training.account import account_of, overview
from lib.training.releases import Releases

Params = Annotated[Any, Body()]


def utc_now() -> datetime:
    """The time of day, in UTC."""
    return datetime.now(UTC)


def release_router(releases: Releases, now: Callable[[], datetime] = utc_now) -> APIRouter:
    """The routes; what they change is taken up by the next request for the model."""
    router = APIRouter(prefix="/medsa/releases", tags=["medsa"], route_class=MedsaRoute)

    @router.get("", summary="All versions, and what was decided when and why")
    def list_releases(user: AnyUser) -> Any:
        return overview(releases)

    @router.get("/{version}", summary="All that is known of one version")
    def show_release(version: str, user: AnyUser) -> Any:
        return asdict(account_of(releases, _number_in_path(version)))

    @router.post("/rollback", summary="Let an earlier version serve again")
    def roll_back(request: Request, user: Admin, own_page: OwnPage, params: Params = None) -> Any:
        given = _object(params)
        version = parse_version(given.get("version"))
        releases.rollback(version, time_text(now()), author(user, given, request))
        return _standing(releases)

    @router.post("/prune", summary="Remove the weights of old versions")
    def prune(request: Request, user: Admin, own_page: OwnPage, params: Params = None) -> Any:
        given = _object(params)
        pruned = releases.prune(given.get("keep"), time_text(now()), author(user, given, request))
        return {"pruned": pruned, **_standing(releases)}

    return router


def parse_version(value: Any) -> int | None:
    """The version to go back to; None: the one that served before. Raises InputError for what is no number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(
            "version", value, "the number of a version, or nothing for the one that served before"
        )
    return value


def time_text(time: datetime) -> str:
    """A time as records hold it."""
    return time.isoformat(timespec="seconds")


def _number_in_path(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise NotFoundError("version", text, "the number of a version")
    return int(text)


def _object(params: Any) -> dict[str, Any]:
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise InputError("body", params, "a JSON object")
    return params


def _standing(releases: Releases) -> dict[str, Any]:
    state = overview(releases)
    return {key: state[key] for key in ("serving", "rollback_to", "versions")}
