"""What runs in the server and not in its child processes: the model, our routes, housekeeping and warming."""

from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

from lib.activelearning.chooser import DEFAULT, Ranking
from lib.errors import NotFoundError, PacsError, VolumeError
from lib.files import remove_parts_of
from lib.server.loop import ATTEMPTS, Housekeeping
from lib.server.night import Night
from lib.server.parts import Parts, note_base
from lib.server.queue_view import QueueView
from lib.server.routes import add_routes
from lib.server.store import watch
from lib.trainers.children import announce_base, announce_server
from lib.training.nightly import NightFile

NIGHT = "nightly.json"
# The longest that the start waits for a PACS whose list is long, and for the first ranking. One that does not answer is
# not waited for; a ranking that fails is told to who asks for a case.
PACS_SECONDS = 20.0
RANKING_SECONDS = 5.0


def begin_serving(app: Any, parts: Parts) -> None:
    """Called once, before the server answers anything. Raises CheckpointError for an unusable base."""
    from monailabel.app import app as server  # exists only in the server process, and only by now

    store = app.datastore()
    first_ranking = _begin_ranking(parts, store)  # beside the loading of the model
    announce_server()
    base = parts.serving.current().base
    announce_base(base)
    note_base(parts.state, base)
    for name in (ATTEMPTS, NIGHT):
        remove_parts_of(parts.state / name)
    queue = QueueView(parts, store)
    housekeeping = Housekeeping(parts, queue)
    nightly = parts.settings.training.nightly
    if nightly is not None:
        housekeeping.night = Night(
            nightly,
            NightFile(parts.state / NIGHT),
            queue,
            housekeeping.make_room,
            housekeeping.is_training,
            housekeeping.starting,
        )
        housekeeping.night.schedule()
    add_routes(server, app, parts, housekeeping)
    known = watch(store, parts.settings.serving.pacs_seconds)
    housekeeping.start()
    if parts.settings.serving.warm and not parts.serving.cache.is_off:
        parts.warmer.start(partial(upcoming_images, parts, store))
    # Who asks first would be told that no case is left, where none is known yet.
    if not known.is_set() and known.wait(PACS_SECONDS):
        first_ranking = _begin_ranking(parts, store)
    wait([first_ranking], RANKING_SECONDS)


def _begin_ranking(parts: Parts, store: Any) -> "Future[Ranking]":
    """So that the first annotator does not wait for it."""
    return parts.chooser.prepare(DEFAULT, *parts.chooser.candidates(store))


def upcoming_images(parts: Parts, store: Any) -> list[Path]:
    """The unlabelled images on lease, the one offered last first, then the one that is offered next."""
    candidates, leases = parts.chooser.candidates(store), parts.leases.table()
    leased = sorted(
        leases.keys() & set(candidates.unlabelled), key=lambda case: leases[case]["until"], reverse=True
    )
    ranking = parts.chooser.ranking(DEFAULT, *candidates)
    following = next((one.case for one in ranking.ranked if one.case not in leases), None)
    wanted = leased if following is None else [*leased, following]
    return [path for case in wanted if (path := _image_of(store, case)) is not None]


def _image_of(store: Any, case: str) -> Path | None:
    """None for one that turns out to be no volume, and while the PACS is away."""
    try:
        return Path(store.image_path(case))
    except (VolumeError, PacsError, NotFoundError):
        return None
