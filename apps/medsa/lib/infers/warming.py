"""Encodes the images that viewers open, in the background, so that the first click finds the work done.

Concurrency. One daemon thread works; requests only leave notes for it. Shared between them: the notes and what is said
of the progress, guarded by the lock of one condition, which is held for bookkeeping only, never while an image is read
or encoded, and with no other lock inside. The thread takes the device's turn chunk by chunk as a background asker, so
that every click goes first and waits for one chunk at most.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lib.errors import MedsaError
from lib.infers.serving import Served, ServingModel
from lib.infers.volumes import VolumeCache
from lib.turns import Asker
from lib.volume import SUFFIXES, Volume

log = logging.getLogger(__name__)

MOST_WAITING = 8  # beyond that the one opened longest ago is forgotten
MOST_RECENT = (
    4  # how many of the last opened are encoded again for a new version; the rest is for upcoming ones
)
VERSION_SECONDS = 1.0  # how often an idle warmer looks whether another version serves
MOST_COMPLAINTS = 64


@dataclass(frozen=True)
class Opened:
    """An image that somebody opened, as the `number`-th, and the slice that matters most (None: the middle one)."""

    path: Path
    near: int | None
    number: int

    @property
    def case(self) -> str:
        """The image's id; of a session's image the name of its file."""
        name = self.path.name
        return name.removesuffix(next((suffix for suffix in SUFFIXES if name.endswith(suffix)), ""))


class Warmer:
    """Encodes what `opened` and `clicked` name, newest first.

    When another version begins to serve, the last opened images and the upcoming ones are encoded again. Before
    `start` nothing is noted and nothing runs.
    """

    def __init__(self, serving: ServingModel, volumes: VolumeCache) -> None:
        self._serving, self._volumes = serving, volumes
        self._condition = threading.Condition()
        self._numbers = count()
        self._waiting: dict[Path, Opened] = {}
        self._recent: OrderedDict[Path, Opened] = OrderedDict()
        self._now: Opened | None = None  # being encoded
        self._shown, self._done, self._of = "", 0, 0
        self._running = False
        # Used by the thread alone.
        self._followed: Served | None = None
        self._upcoming: Callable[[], Iterable[Path]] = tuple
        self._complaints: deque[Path] = deque(maxlen=MOST_COMPLAINTS)

    def start(self, upcoming: Callable[[], Iterable[Path]] = tuple) -> None:
        """Begins to work, until the process ends. `upcoming()`: images that people come to next, in order."""
        self._upcoming, self._followed, self._running = upcoming, self._serving.served, True
        threading.Thread(target=self._run, name="medsa-warming", daemon=True).start()

    def opened(self, path: Path, near: int | None = None) -> None:
        """Somebody opened `path`, or went to its slice `near`: it comes next."""
        if not self._running:
            return
        with self._condition:
            self._note(path, near, recent=True)
            self._condition.notify()

    def clicked(self, path: Path, index: int | None, encoded: bool) -> None:
        """A click on `path` was answered around slice `index`, after something had to be `encoded` for it, or not.

        What is still missing is encoded next, nearest to the click first. Where nothing had to be encoded and nothing
        is under way there is nothing to do.
        """
        with self._condition:
            under_way = path in self._waiting or (self._now is not None and self._now.path == path)
        if encoded or under_way:
            self.opened(path, index)

    def progress(self) -> dict[str, Any]:
        """The case that is encoded, or was the last one; how many of its slices are there; how many cases wait."""
        with self._condition:
            waiting = len(self._waiting)
            return {"case": self._shown or None, "done": self._done, "of": self._of, "waiting": waiting}

    def _note(self, path: Path, near: int | None, recent: bool) -> None:
        """The caller holds the lock."""
        known = self._waiting.pop(path, None)
        if known is None and self._now is not None and self._now.path == path:
            known = self._now
        if near is None and known is not None:
            near = known.near  # who asks for the image only has not gone to another slice
        one = Opened(path, near, next(self._numbers))
        if recent:
            self._recent[path] = one
            self._recent.move_to_end(path)
            while len(self._recent) > MOST_RECENT:
                self._recent.popitem(last=False)
        self._wait_for(one)

    def _wait_for(self, one: Opened) -> None:
        """The caller holds the lock."""
        self._waiting[one.path] = one
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[min(self._waiting.values(), key=lambda other: other.number).path]

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._follow_version()
                one = self._take()
                if one is not None:
                    self._work_on(one)
            except Exception:
                # The thread has to outlive whatever a folder or a library does.
                log.exception("encoding ahead failed; it goes on")
                pause.wait(VERSION_SECONDS)

    def _take(self) -> Opened | None:
        with self._condition:
            if not self._waiting:
                self._condition.wait(VERSION_SECONDS)
            if not self._waiting:
                return None
            one = max(self._waiting.values(), key=lambda other: other.number)
            del self._waiting[one.path]
            self._now, self._shown, self._done, self._of = one, one.case, 0, 0
            return one

    def _work_on(self, one: Opened) -> None:
        try:
            if one.path.exists():  # a session may have been closed, an image removed
                self._warm(one)
        except Exception as error:
            if one.path not in self._complaints:
                self._complaints.append(one.path)
                known = isinstance(error, MedsaError)
                log.warning("case %s is not encoded ahead: %s", one.case, error, exc_info=not known)
        finally:
            with self._condition:
                self._now = None

    def _warm(self, one: Opened) -> None:
        volume, served = self._volumes.load(one.path), self._serving.current()
        done_before = -1

        def still() -> bool:
            nonlocal done_before
            done = self._tell(volume, served)
            # Where the cache is too small for the volume, each chunk drives out one that is nearer.
            headway, done_before = done > done_before, done
            return headway and not self._is_interrupted(served)

        served.predictor.warm(volume, one.near, Asker("warm-up", background=True), still)
        self._tell(volume, served)
        with self._condition:
            unfinished = self._done < self._of and one.path not in self._waiting
            if unfinished and self._is_interrupted(served):
                self._wait_for(one)

    def _is_interrupted(self, served: Served) -> bool:
        """By a newer case, the same case at another slice, or another version."""
        with self._condition:
            now = self._now
            newer = now is not None and any(
                other.number > now.number and (other.path, other.near) != (now.path, now.near)
                for other in self._waiting.values()
            )
        return newer or self._serving.served is not served

    def _tell(self, volume: Volume, served: Served) -> int:
        """Notes the progress; returns how many slices are there."""
        done, of = served.predictor.warmed(volume)
        with self._condition:
            self._done, self._of = done, of
        return done

    def _follow_version(self) -> None:
        """Where another version serves than the last time, what people look at and come to is noted again."""
        served = self._serving.served
        if served is self._followed:
            return
        self._followed = served
        try:
            upcoming = list(self._upcoming())
        except (MedsaError, OSError) as error:
            log.warning("the upcoming cases are not encoded ahead: %s", error)
            upcoming = []
        with self._condition:
            recent = list(self._recent.values())
            known = {one.path for one in recent}
            later = [path for path in upcoming if path not in known][: MOST_WAITING - len(recent)]
            for path in reversed(later):
                self._note(path, None, recent=False)
            for one in recent:
                self._note(one.path, one.near, recent=True)
