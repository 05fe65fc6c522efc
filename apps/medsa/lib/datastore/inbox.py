"""Segmentations that others put into the PACS: each is read once, and becomes a label or is named with the reason.

After the cache was lost these are all that there ever were, our own among them; the oldest is taken first, so that
the newest is the one that counts.

Concurrency: `collect` is called by one thread of one process at a time; `refused` by any.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom.dataset import Dataset

from lib.dicom.pacs import Pacs, SeriesEntry
from lib.dicom.seg_reader import referenced_series
from lib.errors import MedsaError, PacsError, PacsUnreachableError
from lib.files import read_json, write_json

log = logging.getLogger(__name__)

SEEN = Path(".medsa") / "segmentations.json"
LOOKED = Path(".medsa") / "looked.json"
TAKEN = "taken"


@dataclass(frozen=True)
class Arrival:
    """A series of segmentations that nobody has looked at yet: `images` are what its instances are of."""

    entry: SeriesEntry
    images: frozenset[str]
    moment: str


class Inbox:
    """`take` makes the segmentations of a series the labels of their images, or raises with the reason.

    `is_listed` knows the images, `unusable` why others are none, `is_ours` what was sent from here.
    """

    def __init__(
        self,
        root: Path,
        pacs: Pacs,
        is_listed: Callable[[str], bool],
        unusable: Callable[[], Mapping[str, str]],
        is_ours: Callable[[str], bool],
        take: Callable[[Arrival], None],
    ) -> None:
        self._root, self._pacs = root, pacs
        self._is_listed, self._unusable, self._is_ours, self._take = is_listed, unusable, is_ours, take
        # What segmentations are of, so that those of images that are not listed are not asked for at every look.
        self._known: dict[str, Arrival] = {}

    def refused(self) -> dict[str, str]:
        """Segmentations that fit no image or no label, with the reason."""
        states = read_json(self._root / SEEN)
        return {
            series: str(state["state"])
            for series, state in states.items()
            if isinstance(state, dict) and state.get("state") != TAKEN
        }

    def last_look(self) -> str:
        """When the last look began that came to its end, as text that sorts; "" where there was none."""
        return str(read_json(self._root / LOOKED).get("began", ""))

    def collect(self) -> int:
        """Looks for new ones and takes them; how many. Raises PacsUnreachableError."""
        began = datetime.now(UTC).isoformat(timespec="seconds")
        seen = read_json(self._root / SEEN)
        fresh = [
            entry
            for entry in self._pacs.find(["SEG"])
            if seen.get(entry.series, {}).get("instances", -1) != entry.instances
        ]
        arrivals = [found for entry in fresh if (found := self._arrival(entry)) is not None]
        ordered = sorted(arrivals, key=lambda one: (one.moment, one.entry.series))
        taken = sum(map(self._accept, ordered))
        write_json(self._root / LOOKED, {"began": began})
        return taken

    def _accept(self, arrival: Arrival) -> bool:
        try:
            self._take(arrival)
        except PacsUnreachableError:
            raise
        except PacsError as error:
            log.warning("a segmentation in the PACS cannot be fetched: %s", error)
            return False  # it is tried again
        except Exception as error:
            # Other makers' objects hold whatever they hold; one must not hold up the others.
            log.warning(
                "a segmentation in the PACS was not taken as a label: %s",
                error,
                exc_info=not _is_known(error),
            )
            self._note(arrival.entry, str(error) or type(error).__name__)
            return False
        self._note(arrival.entry, TAKEN)
        return True

    def _arrival(self, entry: SeriesEntry) -> Arrival | None:
        """None for one that is ours, or of no image of ours."""
        if self._is_ours(entry.series):
            self._note(entry, TAKEN)
            return None
        known = self._known.get(entry.series)
        if known is None or known.entry.instances != entry.instances:
            try:
                known = _read(entry, self._pacs.headers(entry))
            except PacsUnreachableError:
                raise
            except Exception as error:
                log.warning(
                    "a segmentation in the PACS cannot be read: %s", error, exc_info=not _is_known(error)
                )
                return None
            self._known[entry.series] = known
        if not known.images:
            self._note(entry, "ReferencedSeriesSequence: it is missing; allowed: the series that it is of")
            return None
        unusable = self._unusable()
        reasons = [unusable[image] for image in known.images if image in unusable]
        if reasons:
            self._note(entry, f"the series that it is of cannot be annotated: {reasons[0]}")
            return None
        # Of another modality or department: it may be listed some time.
        return known if any(map(self._is_listed, known.images)) else None

    def _note(self, entry: SeriesEntry, state: str) -> None:
        noted = {"state": state, "instances": entry.instances}
        write_json(self._root / SEEN, {**read_json(self._root / SEEN), entry.series: noted})


def _read(entry: SeriesEntry, headers: list[Dataset]) -> Arrival:
    images = {image for header in headers if (image := referenced_series(header)) is not None}
    return Arrival(entry, frozenset(images), min((moment_of(header) for header in headers), default=""))


def moment_of(header: Dataset) -> str:
    """When it was made, as text that sorts."""
    return "".join(str(header.get(name) or "") for name in ("ContentDate", "ContentTime"))


def _is_known(error: Exception) -> bool:
    return isinstance(error, MedsaError)
