"""What runs in the server and not in its child processes: the model, our routes and the housekeeping."""

from typing import Any

from lib.server.loop import Housekeeping
from lib.server.parts import Parts
from lib.server.queue_view import QueueView
from lib.server.routes import add_routes
from lib.trainers.children import announce_base, announce_server


def begin_serving(app: Any, parts: Parts) -> None:
    """Called once, before the server answers anything. Raises CheckpointError for an unusable base."""
    from monailabel.app import app as server  # exists only in the server process, and only by now

    announce_server()
    announce_base(parts.serving.current().base)
    housekeeping = Housekeeping(parts, QueueView(parts, app.datastore()))
    add_routes(server, app, parts, housekeeping)
    housekeeping.start()
