"""A PACS as a datastore: its series are the images, its segmentations the labels, and nothing is only there.

Images, labels and their whole history lie in a folder, as with studies in a folder, and all that works on those works
here. What is saved is kept there first and then sent (`Outbox`); what others store in the PACS is noticed and becomes a
label like any other (`Inbox`). When the folder is lost, both come back from the PACS.

Concurrency: as in `local.py`. One thread of one process looks after the PACS at a time, which holds `pacs.lock`; others
wake it (`knock`). The PACS is never asked while a lock of `local.py` is held.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from filelock import FileLock, Timeout
from pydicom.dataset import Dataset

from lib.datastore.inbox import Arrival, Inbox, moment_of
from lib.datastore.lastprompts import LastPrompts
from lib.datastore.local import ARRIVED, FINAL, LABEL_SUFFIX, MedsaDatastore
from lib.datastore.outbox import Outbox, Parcel
from lib.datastore.series_folder import IMAGE_SUFFIX, SeriesFolder
from lib.dicom.grid import SeriesGrid
from lib.dicom.pacs import SeriesEntry
from lib.dicom.seg_reader import read_segments, referenced_series
from lib.dicom.seg_writer import LabelCode, SegOrigin, write_seg
from lib.errors import InputError, LabelError, NotFoundError, PacsError, PacsUnreachableError, VolumeError
from lib.files import file_digest
from lib.volume import Volume, load_label, load_volume, save_mask

log = logging.getLogger(__name__)

SUBMIT_S = 5.0  # so long a submit waits for the PACS; then it goes on behind its back
POLL_S = 0.05


class PacsDatastore(MedsaDatastore):
    """The images of `series`; `codes` are what labels are called in DICOM, `base` names the weights below adapters."""

    def __init__(
        self,
        series: SeriesFolder,
        labels: Mapping[str, int],
        codes: Mapping[str, LabelCode],
        base: Callable[[], str],
        serving_version: Callable[[], int | None],
        last_prompts: LastPrompts | None = None,
    ) -> None:
        self.series, self._codes, self._base = series, dict(codes), base
        self.outbox = Outbox(series.root, self._send)
        self.inbox = Inbox(
            series.root,
            series.pacs,
            lambda image: image in series.entries(),
            series.unusable,
            self.outbox.is_ours,
            self._take,
        )
        self.problem: str | None = None
        self._patients: dict[str, str] = {}
        self.knock = threading.Event()
        self.watched = False
        self._looking = FileLock(series.root / "pacs.lock", thread_local=False)
        self._recovered = False
        super().__init__(str(series.root), labels, serving_version, last_prompts=last_prompts)

    def name(self) -> str:
        """What viewers show: not the address, which may hold a password."""
        return "PACS"

    def look(self) -> bool:
        """Lists what there is, sends what waits and takes what came; to be called every few seconds.

        Whether the list was had. Where the PACS does not answer, `problem` says so, and the next look tries again.
        While another process looks, nothing is done.
        """
        is_listed = False
        try:
            with self._looking.acquire(timeout=0):
                self._recover()
                self.list_series()
                is_listed = True
                waiting = self.outbox.deliver()
                self.inbox.collect()
                self._note_problem(waiting)
        except Timeout:
            log.debug("another process looks after the PACS")
        except PacsError as error:
            self._note_problem(str(error))
        return is_listed

    def list_series(self) -> None:
        """Asks the PACS for its list, and no more. Raises PacsError."""
        if self.series.refresh(lambda series: bool(self.get_labels_by_image_id(series))):
            self.refresh()

    def get_image_uri(self, image_id: str) -> str:
        """The volume's file, fetched from the PACS where it is not there yet; "" for a series that is not listed.

        Raises VolumeError for one that is no volume, which is not offered again, PacsError where it cannot be fetched.
        """
        if not isinstance(image_id, str) or image_id not in self._datastore.objects:
            return ""
        try:
            return str(self.series.image(image_id))
        except PacsUnreachableError:
            raise
        except (VolumeError, PacsError):
            self.refresh()
            raise

    def is_fetched(self, image_id: str) -> bool:
        """Whether the volume lies in the folder."""
        return self.series.is_fetched(image_id)

    def patients(self) -> dict[str, str]:
        """Whom each series is of, as its PatientID tells them apart, else its study."""
        return self._patients

    def is_available(self, image_id: str) -> bool:
        """Whether the volume lies there, or the PACS answers."""
        return self.problem is None or self.series.is_fetched(image_id)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Refused: images come from the PACS."""
        raise InputError("image", image_id or Path(image_filename).name, "a series that is sent to the PACS")

    def remove_image(self, image_id: str) -> None:
        """Refused: images are the PACS's."""
        raise InputError("image", image_id, "none; a series is removed in the PACS")

    def save_version(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any] | None
    ) -> int:
        """As in a folder; a final label is sent to the PACS too, at once where it answers, else when it is back."""
        info = {key: value for key, value in (label_info or {}).items() if key != ARRIVED}
        version = super().save_version(image_id, label_filename, label_tag, info)
        if label_tag == FINAL:
            self._hand_over(image_id)
        return version

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is noted about the image, and what DICOM calls it: viewers open a case by its StudyInstanceUID."""
        entry = self.series.entries().get(image_id)
        names = (
            {}
            if entry is None
            else {
                "StudyInstanceUID": entry.study,
                "SeriesInstanceUID": entry.series,
                "Modality": entry.modality,
                "SeriesDescription": entry.description,
            }
        )
        return {**super().get_image_info(image_id), **names}

    def delivery(self, image_id: str, version: int) -> str:
        """What became of a label version: "stored" in the PACS, "waiting" until it answers, or why it never can be."""
        if any((one.image, one.version) == (image_id, version) for one in self.outbox.waiting()):
            return "waiting"
        return self.outbox.refused().get(Parcel(image_id, version, "").name, "stored")

    def pacs_status(self) -> dict[str, Any]:
        """For GET /medsa/status: what waits, what was refused and why, and whether the PACS answers."""
        return {
            "problem": self.problem,
            "waiting_labels": [parcel.image for parcel in self.outbox.waiting()],
            "refused_labels": self.outbox.refused(),
            "refused_segmentations": self.inbox.refused(),
            "unusable_series": self.series.unusable(),
        }

    def _image_grid(self, image_id: str) -> Volume:
        # Reading the pixels of a large series, for nothing but their number, would take a tenth of a submit.
        self.image_path(image_id)
        return _on_grid(self.series.grid(image_id))

    def _on_version(self, image_id: str, record: Mapping[str, Any]) -> None:
        # Under the locks, so that of two who save at once each one's own version is put in.
        if record["tag"] == FINAL and ARRIVED not in record["params"]:
            self.outbox.put(Parcel(image_id, int(record["version"]), str(record["sha256"])))

    def _hand_over(self, image_id: str) -> None:
        """Has what waits sent, and waits for it a moment."""
        if not self.watched:
            self.look()
            return
        self.knock.set()
        deadline = time.monotonic() + SUBMIT_S
        while time.monotonic() < deadline and any(one.image == image_id for one in self.outbox.waiting()):
            time.sleep(POLL_S)

    def _recover(self) -> None:
        """Once: what a kill kept from being put into the outbox."""
        if self._recovered:
            return
        for image in self.list_images():
            for record in self.history.versions(image):
                ours = record.get("tag") == FINAL and ARRIVED not in record.get("params", {})
                parcel = Parcel(image, int(record["version"]), str(record["sha256"]))
                if ours and not self.outbox.knows(parcel):
                    self.outbox.put(parcel)
        self._recovered = True

    def _send(self, parcel: Parcel) -> None:
        """Raises LabelError or VolumeError where it can never be sent, another error where it may be later."""
        record = next(
            (one for one in self.history.versions(parcel.image) if one["version"] == parcel.version), None
        )
        if record is None:
            raise NotFoundError("label", f"{parcel.image}, version {parcel.version}", "one of the history")
        headers, grid = self.series.headers(parcel.image)
        values = load_label(self.history.file_of(record), _on_grid(grid), self._labels)
        version = record.get("adapter_version")
        origin = SegOrigin(
            author=str(record.get("author") or ""),
            algorithm=self._base(),
            version=f"adapter {version}" if version else "without an adapter",
            series=parcel.series,
            instance=parcel.instance,
            description=f"label version {parcel.version}",
        )
        self.series.pacs.store(write_seg(values, self._labels, self._codes, headers, grid, origin))

    def _take(self, arrival: Arrival) -> None:
        """Makes the segmentations of a series in the PACS the labels of their images."""
        with tempfile.TemporaryDirectory() as folder:
            files = self.series.pacs.fetch(arrival.entry, Path(folder) / "seg")
            found = sorted((pydicom.dcmread(file) for file in files), key=moment_of)
            for dataset in found:
                image = referenced_series(dataset)
                if image is not None and image in self.list_images():
                    self._take_one(dataset, image, arrival.entry.series, Path(folder))

    def _take_one(self, dataset: Dataset, image_id: str, series: str, folder: Path) -> None:
        image = load_volume(self.image_path(image_id))
        _, grid = self.series.headers(image_id)
        values = read_segments(dataset, grid).as_labels(self._labels)
        if not values.any():
            raise LabelError("segmentation: it is empty; allowed: at least one voxel of a label")
        path = folder / f"label{LABEL_SUFFIX}"
        save_mask(values, image, path, durable=False)
        if self.history.holds(image_id, file_digest(path)):
            return  # it was taken before a kill, or somebody saved the same
        creator = str(dataset.get("ContentCreatorName") or "").replace("^", " ").strip()
        info = {"user": creator or "PACS", ARRIVED: f"segmentation {series}"}
        if self._has_newer(image_id):
            self._keep_in_history(image_id, values, image, info)
        else:
            super().save_version(image_id, str(path), FINAL, info)

    def _has_newer(self, image_id: str) -> bool:
        """Whether somebody saved a label here since the last look: what is found now may be older than that."""
        own = [one for one in self.history.versions(image_id) if ARRIVED not in one.get("params", {})]
        return bool(own) and str(own[-1].get("saved", "")) >= self.inbox.last_look()

    def _keep_in_history(self, image_id: str, values: Any, image: Volume, info: Mapping[str, Any]) -> None:
        log.info(
            "a segmentation of the PACS is kept in the history: a label was saved here since the last look"
        )
        staged = self.history.stage(image_id, LABEL_SUFFIX)
        save_mask(values, image, staged)
        with self._thread_lock, self._file_lock:
            record = {**self._record(FINAL, file_digest(staged), info, {}), "adapter_version": None}
            self.history.commit(image_id, staged, LABEL_SUFFIX, record)

    def _note_problem(self, problem: str | None) -> None:
        if problem != self.problem:
            log.log(logging.INFO if problem is None else logging.WARNING, "PACS: %s", problem or "it answers")
        self.problem = problem

    def _images_found(self) -> dict[str, str]:
        """All that is listed, fetched or not; what was fetched and is not listed any more is not offered."""
        entries = self.series.entries()
        self._patients = _patients_of(entries.values())
        return dict.fromkeys(sorted(entries), IMAGE_SUFFIX)

    def _signatures_of(self, images: Mapping[str, str]) -> dict[str, str]:
        """A series may grow; what was fetched is made anew then."""
        entries = self.series.entries()
        return {image: f"{entries[image].instances} instances" for image in images if image in entries}


def _patients_of(entries: Collection[SeriesEntry]) -> dict[str, str]:
    """By series. A PatientID that all have was put there to hide who they are: then studies are told apart."""
    tells = len({entry.patient for entry in entries} - {""}) > 1
    return {entry.series: entry.patient if tells and entry.patient else entry.study for entry in entries}


def _on_grid(grid: SeriesGrid) -> Volume:
    """A volume of that grid with nothing in it, which takes no memory."""
    return Volume(np.broadcast_to(np.zeros((), np.int16), grid.shape_ijk), grid.affine)
