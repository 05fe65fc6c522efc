"""Labels on their way to the PACS: one file each, until it has them.

A label is first kept here, so that neither a PACS that is down nor a kill loses it. Its segmentation has a name that
follows from its content, so that sending it twice, after an answer that was lost, makes no second one.

Concurrency: files are written whole. `deliver` is called by one thread of one process at a time, which whoever looks
after the PACS sees to; the others only put in, and read.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydicom.uid import generate_uid

from lib.errors import LabelError, PacsError, PacsUnreachableError, VolumeError
from lib.files import read_json, write_json

log = logging.getLogger(__name__)

FOLDER = Path(".medsa") / "outbox"
SENT = Path(".medsa") / "sent.json"


@dataclass(frozen=True)
class Parcel:
    """One label version of an image, to be sent; `sha256` is that of its file in the history."""

    image: str
    version: int
    sha256: str

    @property
    def series(self) -> str:
        """SeriesInstanceUID of the segmentation."""
        return self._uid("series")

    @property
    def instance(self) -> str:
        """SOPInstanceUID of the segmentation."""
        return self._uid("instance")

    @property
    def name(self) -> str:
        """Of its file in the outbox."""
        return f"{self.image}-{self.version:06d}"

    def _uid(self, kind: str) -> str:
        return str(generate_uid(entropy_srcs=["medsa", kind, self.image, str(self.version), self.sha256]))


class Outbox:
    """`send` stores one parcel in the PACS.

    LabelError and VolumeError of it mean that this can never be; with any other error it is tried again.
    """

    def __init__(self, root: Path, send: Callable[[Parcel], None]) -> None:
        self._folder, self._sent, self._send = root / FOLDER, root / SENT, send
        self._said: dict[str, str] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    def put(self, parcel: Parcel) -> None:
        """Keeps it until it is sent; from here on it cannot be lost."""
        write_json(self._folder / f"{parcel.name}.json", asdict(parcel))

    def waiting(self) -> list[Parcel]:
        """Oldest first."""
        return [parcel for _, parcel in self._parcels()]

    def refused(self) -> dict[str, str]:
        """What can never be sent, by image and version, with the reason; the label itself is in the history."""
        return {path.stem: str(read_json(path).get("reason")) for path in self._folder.glob("*.refused")}

    def knows(self, parcel: Parcel) -> bool:
        """Whether it was put in at some time, whatever became of it."""
        return (self._folder / f"{parcel.name}.refused").exists() or self.is_ours(parcel.series)

    def is_ours(self, series: str) -> bool:
        """Whether the segmentation of that SeriesInstanceUID was sent from here, or is about to be."""
        # In this order: what is sent in between is in the second.
        return any(parcel.series == series for parcel in self.waiting()) or series in read_json(self._sent)

    def deliver(self) -> str | None:
        """Sends all that wait; the first reason where one has to wait on."""
        reasons: list[str] = []
        for path, parcel in list(self._parcels()):
            try:
                self._deliver(path, parcel)
            except PacsUnreachableError as error:
                return reasons[0] if reasons else f"a label waits: {error}"
            except Exception as error:
                # Whatever it is, it must not hold up the others.
                reasons.append(f"the label {parcel.name} waits: {error or type(error).__name__}")
                if self._said.get(parcel.name) != reasons[-1]:
                    log.warning("%s", reasons[-1], exc_info=not isinstance(error, PacsError))
                self._said[parcel.name] = reasons[-1]
        return reasons[0] if reasons else None

    def _deliver(self, path: Path, parcel: Parcel) -> None:
        try:
            self._send(parcel)
        except (LabelError, VolumeError) as error:
            log.error("a label cannot be sent to the PACS: %s", error)
            write_json(path.with_suffix(".refused"), {**asdict(parcel), "reason": str(error)})
        else:
            # Before it is out of the box: at every moment one of the two knows that it is ours.
            write_json(self._sent, {**read_json(self._sent), parcel.series: parcel.image})
        path.unlink(missing_ok=True)

    def _parcels(self) -> Iterator[tuple[Path, Parcel]]:
        found: list[tuple[int, str, Path]] = []
        for path in self._folder.glob("*.json"):
            try:
                found.append((path.stat().st_mtime_ns, path.name, path))
            except FileNotFoundError:
                continue  # sent meanwhile
        for *_, path in sorted(found):
            try:
                yield path, Parcel(**read_json(path))
            except TypeError:
                if path.exists():
                    log.warning("%s in the outbox cannot be read", path.name)
