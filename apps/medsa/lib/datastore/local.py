"""MONAI Label's local datastore with what it lacks: checked names and labels, history, a lasting registry.

Concurrency. Shared between the server's threads: `_signatures` of the images as they were last listed, only ever
replaced, and `_model`, what the registry file said when it was last read. Neither it nor an entry of it is ever changed
in place: a change replaces entries of a draft, writes the file and swaps the pointer, so readers need no lock, and what
stays the same is shared: copying all of ten thousand entries took a second. Shared between processes (training and
scoring children build their own datastore): the registry file `datastore_v2.json` and the history's numbers, guarded by
`_thread_lock` and then the file lock `.lock`, always in that order and together. Images and labels are read, checked
and copied before the locks are taken; under them files are only renamed, but for a label that lies there without a
version: it is copied into the history under the locks, so that nobody can change it between that and its replacement.
`last_prompts` guards itself and is asked outside of these locks.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from pydantic import ValidationError

from lib.datastore.history import LabelHistory
from lib.datastore.labelvalues import read_label
from lib.datastore.lastprompts import LastPrompts
from lib.datastore.names import check_image_id, check_tag
from lib.errors import InputError, NotFoundError
from lib.files import copy_beside, file_digest, file_signature, flush, write_text
from lib.prompts.promptset import PromptSet
from lib.prompts.recorded import recorded_prompts
from lib.volume import LABEL_SUFFIXES, SUFFIXES, Volume, load_volume, save_mask

log = logging.getLogger(__name__)

EXTENSIONS = tuple(f"*{suffix}" for suffix in SUFFIXES)
LABEL_SUFFIX = ".nii.gz"
LAST_PROMPTS = Path(".medsa") / "last_prompts"  # where no other place is given
# In a label's information: it was not saved by somebody at this server, but came from a PACS.
ARRIVED = "arrived"
QUIET_S, LONGEST_UNREST_S = 0.5, 5.0
DIGESTED_BYTES = 1 << 16  # of each end of a file
FINAL = DefaultLabelTag.FINAL.value
Signature = tuple[int, int, int]


class MedsaDatastore(LocalDatastore):
    """Images in one folder, labels in labels/<tag>/ below it, all labels ever saved in .medsa/history/."""

    def __init__(
        self,
        studies: str,
        labels: Mapping[str, int],
        serving_version: Callable[[], int | None],
        auto_reload: bool = False,
        read_only: bool = False,
        last_prompts: LastPrompts | None = None,
    ) -> None:
        self.last_prompts = last_prompts or LastPrompts(Path(studies) / LAST_PROMPTS)
        self._labels = dict(labels)
        self._serving_version = serving_version
        self._thread_lock = threading.RLock()
        self._file_lock = FileLock(Path(studies) / ".lock", thread_local=False)
        self._signature: Signature | None = None
        self._signatures: Mapping[str, str] = {}
        self._folder_changed = threading.Event()
        self.history = LabelHistory(Path(studies))
        super().__init__(studies, extensions=EXTENSIONS, auto_reload=auto_reload, read_only=read_only)
        if auto_reload:
            # The base class watches for new files, but not for those moved to their name when complete.
            self._handler.on_moved = self._on_any_event
            threading.Thread(target=self._follow_folder, name="medsa-folder", daemon=True).start()

    # The base class reads `_datastore` everywhere; through this property it sees what other processes wrote.
    @property
    def _datastore(self) -> LocalDatastoreModel:
        if self._on_disk() != self._signature:
            with self._thread_lock:
                self._reload(repair=False)
        return self._model

    @_datastore.setter
    def _datastore(self, model: LocalDatastoreModel) -> None:
        self._model = model

    def image_path(self, image_id: str) -> Path:
        """The image's file; raises NotFoundError for an id that is not in the datastore."""
        uri = self.get_image_uri(image_id) if isinstance(image_id, str) else ""
        if not uri or not Path(uri).is_file():
            raise NotFoundError(
                "image", image_id, f"one of the {len(self.list_images())} image ids of this server"
            )
        return Path(uri)

    def is_fetched(self, image_id: str) -> bool:
        """Whether the image is here, and need not come from elsewhere."""
        return True

    def patients(self) -> dict[str, str]:
        """Whom each image is of, by image; nothing of those that the datastore cannot tell apart."""
        return {}

    def is_available(self, image_id: str) -> bool:
        """Whether the image can be had now, as far as is known."""
        return True

    def image_signature(self, image_id: str) -> str:
        """Tells the image's file from another one that has its name at another time; "" where there is none."""
        entry = self._datastore.objects.get(image_id)
        return "" if entry is None else self._signatures_of({image_id: entry.image.ext}).get(image_id, "")

    def image_signatures(self) -> Mapping[str, str]:
        """The signatures of all images, as they were when the folder was last looked through."""
        known = self._signatures
        unknown = {
            case: entry.image.ext for case, entry in self._datastore.objects.items() if case not in known
        }
        if not unknown:
            return known
        found = {**known, **self._signatures_of(unknown)}  # of another process, or uploaded
        if self._signatures is known:
            self._signatures = found
        return found

    def label_path(self, label_id: str, tag: str) -> Path:
        """The current label's file; raises NotFoundError where there is none."""
        uri = self.get_label_uri(label_id, check_tag(tag))
        if not uri or not Path(uri).is_file():
            raise NotFoundError("label", label_id, f"the id of an image that has a label with tag {tag}")
        return Path(uri)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Stores a new image; an id in use is refused, because its labels would no longer fit."""
        default_id, suffix = self._to_id(Path(image_filename).name)
        image_id = check_image_id(image_id or default_id)
        if suffix not in SUFFIXES:
            raise InputError("file", suffix, ", ".join(EXTENSIONS))
        load_volume(Path(image_filename))
        target = Path(self._model.image_path()) / self._filename(image_id, suffix)
        part = copy_beside(Path(image_filename), target)
        with self._transaction() as draft:
            if image_id in draft.objects:
                part.unlink()
                raise InputError("image", image_id, "an id that is not in use")
            part.replace(target)
            info = {**(image_info or {}), "ts": _now_seconds(), "name": target.name}
            draft.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Removes the image and its current labels; the history keeps every label."""
        path = self.image_path(image_id)
        for tag in self.get_labels_by_image_id(image_id):
            self.remove_label(image_id, tag)
        path.unlink()
        self.last_prompts.clear(image_id, self.last_prompts.of(image_id))
        self.refresh()

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None
    ) -> str:
        """As `save_version`; returns the label's id, as MONAI Label wants it."""
        self.save_version(image_id, label_filename, label_tag, label_info)
        return image_id

    def save_version(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any] | None
    ) -> int:
        """Checks the label against its image, keeps it as a new version and makes it the current one.

        Returns the version's number. `label_info["label_info"]` names the values in the file. Raises NotFoundError,
        InputError, VolumeError or LabelError, and then nothing is stored.
        """
        tag, info = check_tag(label_tag), dict(label_info or {})
        image = self._image_grid(image_id)
        values = read_label(Path(label_filename), image, self._labels, info.get("label_info"))
        staged = self.history.stage(image_id, LABEL_SUFFIX)
        try:
            save_mask(values, image, staged)
            return self._make_current(image_id, tag, staged, info)
        finally:
            staged.unlink(missing_ok=True)  # still there only when something failed

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Removes the current label; the history keeps it. Raises NotFoundError where there is none."""
        tag = check_tag(label_tag)
        self.label_path(label_id, tag)
        with self._transaction():
            self._keep_unknown(label_id, tag)
            for path in self._label_files(label_id, tag):
                path.unlink()
        self.refresh()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Adds `info` to what is noted about the image; raises NotFoundError for an unknown id."""
        self.image_path(image_id)
        with self._transaction() as draft:
            _own(draft, image_id).image.info.update(info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Adds `info` to what is noted about the label; raises NotFoundError where there is none."""
        tag = check_tag(label_tag)
        self.label_path(label_id, tag)
        with self._transaction() as draft:
            _own(draft, label_id).labels[tag].info.update(info)

    def recorded_prompts(self, image_id: str) -> dict[str, PromptSet]:
        """The prompts that were last kept with a final label of the image, by label name ("" for none).

        Those on an image that had this id before are none of it.
        """
        image = _quick_digest(Path(self.get_image_uri(image_id)))
        for record in reversed(self.history.versions(image_id)):
            # A label that was saved again without another click has none of its own.
            if record.get("tag") == FINAL and record.get("prompts"):
                return recorded_prompts(record) if record.get("image_digest", image) == image else {}
        return {}

    def _make_current(self, image_id: str, tag: str, staged: Path, info: Mapping[str, Any]) -> int:
        arrived = ARRIVED in info
        prompts = {} if arrived else self.last_prompts.of(image_id)
        image = _quick_digest(self.image_path(image_id))
        record = {**self._record(tag, file_digest(staged), info, prompts), "image_digest": image}
        if arrived:
            record["adapter_version"] = None
        target = Path(self._model.label_path(tag)) / self._filename(image_id, LABEL_SUFFIX)
        view = copy_beside(staged, target)
        try:
            with self._transaction() as draft:
                if image_id not in draft.objects:
                    raise NotFoundError("image", image_id, "an image that was not removed meanwhile")
                self._keep_unknown(image_id, tag)
                version = self.history.commit(image_id, staged, LABEL_SUFFIX, record)
                view.replace(target)
                flush(target.parent)
                for path in self._label_files(image_id, tag):
                    if path != target:
                        path.unlink()
                noted = {
                    **info,
                    "ts": _now_seconds(),
                    "name": target.name,
                    "version": version,
                    "sha256": record["sha256"],
                }
                _own(draft, image_id).labels[tag] = DataModel(info=noted, ext=LABEL_SUFFIX)
                self._on_version(image_id, {**record, "version": version})
        finally:
            view.unlink(missing_ok=True)
        if tag == FINAL and not arrived:
            self.last_prompts.clear(image_id, prompts)
        return version

    def _image_grid(self, image_id: str) -> Volume:
        """The image, only whose grid is used. Raises NotFoundError, and VolumeError for one that is no volume."""
        return load_volume(self.image_path(image_id))

    def _on_version(self, image_id: str, record: Mapping[str, Any]) -> None:
        """Told of every version that becomes the current label, while the locks are held."""

    def _record(
        self, tag: str, sha256: str, info: Mapping[str, Any], prompts: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "tag": tag,
            "author": str(info.get("user") or info.get("client_id") or "unknown"),
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "adapter_version": self._serving_version(),
            "sha256": sha256,
            "params": dict(info),
            "prompts": dict(prompts),
        }

    def _keep_unknown(self, image_id: str, tag: str) -> None:
        """Makes every label file that did not come through `save_label` a version, before it is replaced.

        The folder is asked, not the registry, which may not know a new file yet and knows one file per id only.
        The caller holds both locks.
        """
        for path in self._label_files(image_id, tag):
            if self.history.holds(image_id, file_digest(path)):
                continue
            _, suffix = self._to_id(path.name)
            kept = copy_beside(path, self.history.stage(image_id, suffix))
            try:
                record = self._record(tag, file_digest(kept), {"user": "found on disk"}, {})
                self.history.commit(image_id, kept, suffix, record)
            finally:
                kept.unlink(missing_ok=True)

    def _label_files(self, image_id: str, tag: str) -> list[Path]:
        """The files that are this image's label, in whatever format: one, unless somebody put more there."""
        folder = Path(self._model.label_path(tag))
        names = (self._filename(image_id, suffix) for suffix in LABEL_SUFFIXES)
        return [path for path in (folder / name for name in names) if path.is_file()]

    def _to_id(self, file: str) -> tuple[str, str]:
        """(id, suffix) of a file name; the base class removes the suffix wherever it stands in the name."""
        for suffix in SUFFIXES:
            if file.endswith(suffix):
                return file.removesuffix(suffix), suffix
        stem, dot, suffix = file.partition(".")
        return stem, dot + suffix

    @contextmanager
    def _transaction(self) -> Iterator[LocalDatastoreModel]:
        """A draft of the newest registry, written and shown to readers when the block ends well.

        Its entries are those that readers see: they are replaced, or made its own (`_own`) before they are changed.
        """
        with self._thread_lock, self._file_lock:
            self._reload(repair=True)
            draft = self._model.model_copy(update={"objects": dict(self._model.objects)})
            yield draft
            if draft != self._model or not Path(self._datastore_config_path).exists():
                self._write(draft)

    def _on_any_event(self, event: object) -> None:
        """Told by the watcher of each file that comes or goes, which a save of our own does several times."""
        self._folder_changed.set()

    def _follow_folder(self) -> None:
        """Looks at the folders whenever they have changed and are quiet again, or have not been for a while."""
        while self._folder_changed.wait():
            deadline = time.monotonic() + LONGEST_UNREST_S
            while self._folder_changed.is_set() and time.monotonic() < deadline:
                self._folder_changed.clear()
                time.sleep(QUIET_S)
            self._folder_changed.clear()
            try:
                self.refresh()
            except Exception:
                # The thread has to outlive whatever lies in the folders.
                log.exception(
                    "the folder of studies could not be looked through; it is tried at its next change"
                )

    def _reconcile_datastore(self) -> None:
        with self._transaction() as draft:
            images = self._images_found()
            labels_folder = Path(draft.label_path(None))
            tags = sorted(entry.name for entry in labels_folder.iterdir() if entry.is_dir())
            labels = {tag: self._suffixes_by_id(labels_folder / tag, LABEL_SUFFIXES) for tag in tags}
            draft.objects = {
                image_id: _reconciled(draft.objects.get(image_id), image_id, images[image_id], labels)
                for image_id in sorted(images)
            }
        # Not under the locks: on a network's share it takes a moment for each file.
        self._signatures = self._signatures_of(images)

    def _images_found(self) -> dict[str, str]:
        """Id -> suffix of all images there are."""
        return self._suffixes_by_id(Path(self._datastore_path), SUFFIXES)

    def _signatures_of(self, images: Mapping[str, str]) -> dict[str, str]:
        """Id -> signature; `images` are id -> suffix."""
        found, folder = {}, str(self._datastore_path)
        for image_id, suffix in images.items():
            with suppress(OSError):  # removed meanwhile
                found[image_id] = file_signature(f"{folder}/{self._filename(image_id, suffix)}")
        return found

    def _suffixes_by_id(self, folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
        """Id -> suffix of the images or labels in `folder`; of two with one id the first by name counts."""
        found: dict[str, str] = {}
        for name in sorted(name for name in os.listdir(folder) if name.endswith(suffixes)):
            image_id, suffix = self._to_id(name)
            if not name.startswith(".") and found.setdefault(image_id, suffix) != suffix:
                log.warning("two files of %s have the id %s; %s is left out", folder.name, image_id, name)
        return found

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._thread_lock, self._file_lock:
            self._reload(repair=True)

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._thread_lock, self._file_lock:
            self._write(self._model)

    def _reload(self, repair: bool) -> None:
        """Takes over a changed registry file. The caller holds the thread lock, with `repair` both locks.

        A file that cannot be understood is put aside and built anew from the folders: nothing is known only
        to it but who saved what when, and the history knows that too.
        """
        signature, path = self._on_disk(), Path(self._datastore_config_path)
        if signature is None or signature == self._signature:
            return
        try:
            model = LocalDatastoreModel.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            log.warning("%s cannot be read (%s)", path.name, type(error).__name__)
            if repair:
                self._put_aside(path)
            return
        model.base_path = self._datastore_path
        self._model, self._signature = model, signature

    def _put_aside(self, path: Path) -> None:
        aside = path.with_name(f"{path.name}.broken-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        path.replace(aside)
        self._signature = None
        log.warning("%s is kept as %s and built anew from the folders", path.name, aside.name)

    def _write(self, model: LocalDatastoreModel) -> None:
        """Writes the registry and shows it to the readers; the caller holds both locks."""
        write_text(Path(self._datastore_config_path), model.model_dump_json(indent=2, exclude={"base_path"}))
        self._model, self._signature = model, self._on_disk()

    def _on_disk(self) -> Signature | None:
        try:
            stat = os.stat(self._datastore_config_path)
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _own(draft: LocalDatastoreModel, image_id: str) -> ImageLabelModel:
    """The draft's entry of the image as a copy that may be changed."""
    draft.objects[image_id] = draft.objects[image_id].model_copy(deep=True)
    return draft.objects[image_id]


def _reconciled(
    known: ImageLabelModel | None, image_id: str, suffix: str, labels: Mapping[str, Mapping[str, str]]
) -> ImageLabelModel:
    """The entry of an image as the folders have it, `labels` being tag -> id -> suffix; the known one if it says so."""
    image = _entry(known.image if known is not None else None, image_id, suffix)
    found = {
        tag: _entry(known.labels.get(tag) if known is not None else None, image_id, suffixes[image_id])
        for tag, suffixes in labels.items()
        if image_id in suffixes
    }
    if known is not None and known.image is image and known.labels == found:
        return known
    return ImageLabelModel(image=image, labels=found)


def _entry(known: DataModel | None, image_id: str, suffix: str) -> DataModel:
    """The entry of a file that is there: the known one if it still describes it, else a new one."""
    if known is not None and known.ext == suffix:
        return known
    return DataModel(info={"ts": _now_seconds(), "name": image_id + suffix}, ext=suffix)


def _quick_digest(path: Path) -> str:
    """Tells one image of a name from another, without reading all of it: by its size, its head and its tail."""
    try:
        with path.open("rb") as stream:
            head = stream.read(DIGESTED_BYTES)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - DIGESTED_BYTES))
            return hashlib.sha256(b"%d" % size + head + stream.read()).hexdigest()[:16]
    except OSError:
        return ""


def _now_seconds() -> int:
    return int(datetime.now(UTC).timestamp())
