"""Encodes the images that viewers open, in the background, so that the first click finds the work done.

Concurrency. One daemon thread works; requests only leave a note for it. Shared: the notes and what is said of the
progress, guarded by one condition's lock, which is held for bookkeeping only, never while an image is read or encoded.
The work takes the device's turn chunk by chunk as a background asker, so that every click comes first.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import MedsaError
from lib.infers.serving import Served, ServingModel
from lib.infers.volumes import VolumeCache
from lib.turns import Asker
from lib.volume import SUFFIXES

log = logging.getLogger(__name__)

MOST_WAITING = 8  # of those that wait to be encoded; beyond that the one opened longest ago is dropped
VERSION_SECONDS = 1.0  # how often it is asked whether another version serves


@dataclass(frozen=True)
class Opened:
    """An image that somebody opened, and the slice that matters most (None: the middle one)."""

    path: Path
    near: int | None = None

    @property
    def case(self) -> str:
        """The image's id, for people; of a session's image its temporary name."""
        name = self.path.name
        return name.removesuffix(next((suffix for suffix in SUFFIXES if name.endswith(suffix)), ""))


class Warmer:
    """Warms what `opened` was told, newest first, and again when another version serves."""

    def __init__(self, serving: ServingModel, volumes: VolumeCache) -> None:
        self._serving, self._volumes = serving, volumes
        self._condition = threading.Condition()
        self._waiting: OrderedDict[Path, Opened] = OrderedDict()
        self._recent: OrderedDict[Path, Opened] = OrderedDict()
        self._now: Opened | None = None
        self._done = self._of = self._notes = 0
        self._running = False
        self._next_paths: Callable[[], Iterable[Path]] = tuple

    def start(self, next_paths: Callable[[], Iterable[Path]]) -> None:
        """Begins to work until the process ends. `next_paths()` are the images that people will open next."""
        self._next_paths, self._running = next_paths, True
        threading.Thread(target=self._run, name="medsa-warming", daemon=True).start()

    def opened(self, path: Path, near: int | None = None) -> None:
        """Somebody looks at `path`, at slice `near`: it comes next. Does nothing before `start`."""
        if not self._running:
            return
        with self._condition:
            self._note(Opened(path, near))
            self._condition.notify()

    def progress(self) -> dict[str, Any]:
        """The case that is (or was last) worked on, how many of its slices are done, and how many cases wait."""
        with self._condition:
            case = None if self._now is None else self._now.case
            return {"case": case, "done": self._done, "of": self._of, "waiting": len(self._waiting)}

    def _note(self, one: Opened) -> None:
        """The caller holds the lock."""
        self._notes += 1
        for table in (self._waiting, self._recent):
            table.pop(one.path, None)
            table[one.path] = one
            while len(table) > MOST_WAITING:
                table.popitem(last=False)

    def _run(self) -> None:
        served: Served | None = None
        while True:
            served = self._after_a_change(served)
            with self._condition:
                if not self._waiting:
                    self._condition.wait(VERSION_SECONDS)
                    continue
                _, one = self._waiting.popitem(last=True)
                self._now, self._done, self._of = one, 0, 0
                notes = self._notes
            try:
                self._warm(one, notes)
            except MedsaError as error:
                log.warning("case %s is not encoded ahead: %s", one.case, error)
            except Exception:
                # The thread has to outlive whatever a file or a library does.
                log.exception("case %s is not encoded ahead", one.case)

    def _after_a_change(self, before: Served | None) -> Served | None:
        """What serves now; when that is another version, the images in use are noted again."""
        now = self._serving.served
        if now is before or before is None:
            return now
        with self._condition:
            recent = list(self._recent.values())
        try:
            ahead = [Opened(path) for path in self._next_paths()]
        except (MedsaError, OSError) as error:
            log.warning("the next cases are not encoded ahead: %s", error)
            ahead = []
        with self._condition:
            for one in [*reversed(ahead), *recent]:
                self._note(one)
        return now

    def _warm(self, one: Opened, notes: int) -> None:
        """Encodes what is missing of the image, until there are more than `notes` notes: something newer came."""
        volume = self._volumes.load(one.path)
        served = self._serving.current()

        def still() -> bool:
            done, of = served.predictor.warmed(volume)
            with self._condition:
                self._done, self._of = done, of
                return self._notes == notes and self._serving.served is served

        served.predictor.warm(volume, one.near, Asker("warm-up", background=True), still)
        if still():
            return
        with self._condition:
            if self._done < self._of and one.path not in self._waiting:
                # It goes on after what is newer.
                self._waiting[one.path] = one
                self._waiting.move_to_end(one.path, last=False)
