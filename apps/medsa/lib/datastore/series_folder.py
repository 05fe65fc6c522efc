"""The series of a PACS as images in a folder: listed at once, fetched when somebody needs one.

<root>/series.json has the list, <root>/dicom/<SeriesInstanceUID>/ the instances as they came, and beside it
<root>/<SeriesInstanceUID>.nrrd the volume. All of it can be deleted and is fetched again; `unusable.json` says why a
series is no volume.

Concurrency. The files appear whole, so that the server and its children may do the same at once. In one process a lock
for each series (`_locks`, itself guarded by `_guard`) keeps two threads from fetching one twice.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from lib.dicom.grid import SeriesGrid, series_grid
from lib.dicom.image import load_series, read_headers
from lib.dicom.pacs import Pacs, SeriesEntry
from lib.errors import NotFoundError, PacsError, PacsUnreachableError, VolumeError
from lib.files import read_json, write_json
from lib.volume import save_image

log = logging.getLogger(__name__)

IMAGE_SUFFIX = ".nrrd"
# What the PACS could not send is offered again after so long.
REST_S = 600.0


class SeriesFolder:
    """The images of one PACS below `root`."""

    def __init__(
        self, root: Path, pacs: Pacs, modalities: Sequence[str], now: Callable[[], float] = time.time
    ) -> None:
        self.root, self.pacs, self._modalities, self._now = root, pacs, tuple(modalities), now
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._grids: dict[str, SeriesGrid] = {}
        root.mkdir(parents=True, exist_ok=True)

    def entries(self) -> dict[str, SeriesEntry]:
        """The series of the last list, by SeriesInstanceUID, but for those that turned out to be no volume.

        And but for those whose number of instances changed at the last look: they are still being sent.
        """
        unusable, found = self.unusable(), {}
        for series, stored in read_json(self.root / "series.json").items():
            entry, settled = _stored(stored)
            if entry is not None and settled and series not in unusable:
                found[series] = entry
        return found

    def is_changing(self) -> bool:
        """Whether a series was new at the last look, or had another number of instances than before."""
        listed = [_stored(stored) for stored in read_json(self.root / "series.json").values()]
        return any(entry is not None and not settled for entry, settled in listed)

    def unusable(self) -> dict[str, str]:
        """Series that cannot be annotated, with the reason."""
        return {
            str(series): str(said["reason"])
            for series, said in read_json(self.root / "unusable.json").items()
            if isinstance(said, dict) and (said.get("until") is None or said["until"] > self._now())
        }

    def refresh(self, has_label: Callable[[str], bool] = lambda series: False) -> bool:
        """Asks the PACS for its list; whether it is another than before. Raises PacsError.

        A series that has grown since is fetched anew, unless it `has_label`, which is of the images that were there.
        """
        before = read_json(self.root / "series.json")
        found: dict[str, Any] = {}
        for entry in self.pacs.find(self._modalities):
            earlier, _ = _stored(before.get(entry.series))
            settled = earlier is not None and earlier.instances == entry.instances
            found[entry.series] = {**asdict(entry), "settled": settled}
            if earlier is not None and not settled:
                self._forget(entry.series, keep_files=has_label(entry.series))
        if found == before:
            return False
        write_json(self.root / "series.json", found)
        return True

    def is_fetched(self, series: str) -> bool:
        """Whether its volume lies in the folder."""
        return (self.root / f"{series}{IMAGE_SUFFIX}").is_file()

    def image(self, series: str) -> Path:
        """The volume's file, fetched and converted where it is not there yet.

        Raises NotFoundError for a series that is not listed, VolumeError with the reason for one that is no volume,
        PacsError where it cannot be fetched.
        """
        path = self.root / f"{series}{IMAGE_SUFFIX}"
        if path.is_file():
            return path
        with self._lock_of(series):
            if not path.is_file():
                self._convert(series, path)
        return path

    def headers(self, series: str) -> tuple[list[Dataset], SeriesGrid]:
        """What the instances say, and the grid of their slices; fetched where they are not there."""
        with self._lock_of(series):
            headers = read_headers(self._files(series))
            grid = self._grids[series] = series_grid(headers)
        return headers, grid

    def grid(self, series: str) -> SeriesGrid:
        """The grid alone, which is remembered; raises as `headers` does."""
        known = self._grids.get(series)
        return self.headers(series)[1] if known is None else known

    def _convert(self, series: str, path: Path) -> None:
        try:
            volume, _ = load_series(self._files(series))
        except VolumeError as error:
            self._pass_over(series, str(error), None)
            raise
        except PacsUnreachableError:
            raise
        except PacsError as error:
            self._pass_over(series, str(error), self._now() + REST_S)
            raise
        save_image(volume, path)

    def _pass_over(self, series: str, reason: str, until: float | None) -> None:
        log.warning("a series cannot be annotated: %s", reason)
        noted = {**read_json(self.root / "unusable.json"), series: {"reason": reason, "until": until}}
        write_json(self.root / "unusable.json", noted)

    def _forget(self, series: str, *, keep_files: bool) -> None:
        noted = read_json(self.root / "unusable.json")
        if noted.pop(series, None) is not None:
            write_json(self.root / "unusable.json", noted)
        if keep_files:
            log.warning("a series that has a label has changed in the PACS; what was fetched first stays")
            return
        with self._lock_of(series):
            self._grids.pop(series, None)
            (self.root / f"{series}{IMAGE_SUFFIX}").unlink(missing_ok=True)
            shutil.rmtree(self.root / "dicom" / series, ignore_errors=True)

    def _files(self, series: str) -> list[Path]:
        folder = self.root / "dicom" / series
        if folder.is_dir():
            return sorted(folder.glob("*.dcm"))
        entry = self.entries().get(series)
        if entry is None:
            reason = self.unusable().get(series)
            if reason is not None:
                raise VolumeError(f"series {series}: {reason}")
            raise NotFoundError("image", series, "one of the series that this server lists")
        return self.pacs.fetch(entry, folder)

    def _lock_of(self, series: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(series, threading.Lock())


def _stored(fields: Mapping[str, Any] | None) -> tuple[SeriesEntry | None, bool]:
    """An entry of series.json, and whether it has settled; None for what cannot be read."""
    try:
        plain = dict(fields or {})
        settled = bool(plain.pop("settled"))
        return SeriesEntry(**plain), settled
    except (TypeError, KeyError, ValueError):
        return None, False
