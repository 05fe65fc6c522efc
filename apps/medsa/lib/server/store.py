"""The datastore that `--studies` names: a folder, or a PACS by its DICOMweb address."""

import hashlib
import logging
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from monailabel.config import settings as monailabel_settings
from pydicom.sr.coding import Code

from lib.datastore.lastprompts import LastPrompts
from lib.datastore.local import MedsaDatastore
from lib.datastore.pacs_store import PacsDatastore
from lib.datastore.series_folder import SeriesFolder
from lib.dicom.pacs import Pacs
from lib.dicom.seg_writer import LabelCode
from lib.errors import InputError, PacsError, SettingsError
from lib.server.parts import Parts
from lib.settings import CodedName, TaskSettings
from lib.trainers.children import announced_base

log = logging.getLogger(__name__)

FIRST_S = 1.0
SCHEMES = ("http://", "https://")


def is_pacs(studies: str) -> bool:
    """Whether `--studies` is an address, and not a folder."""
    return studies.startswith(SCHEMES)


def open_store(studies: str, parts: Parts) -> MedsaDatastore:
    """The datastore of the app; nothing is asked of a PACS yet. Raises SettingsError for an address that is none."""
    last_prompts = LastPrompts(parts.state / "last_prompts")
    labels = parts.settings.task.labels
    if is_pacs(studies):
        return PacsDatastore(
            _series_folder(studies, parts),
            labels,
            _codes(parts.settings.task),
            lambda: announced_base() or parts.settings.serving.base,
            parts.serving_version,
            last_prompts,
        )
    return MedsaDatastore(
        studies,
        labels,
        parts.serving_version,
        auto_reload=monailabel_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
        read_only=monailabel_settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        last_prompts=last_prompts,
    )


def watch(store: Any, seconds: float) -> threading.Event:
    """Has a PACS looked at every few seconds, from now on; at once for the first time. Nothing for a folder.

    The event is set when it is known what there is to offer, or that the PACS does not answer.
    """
    known = threading.Event()
    if isinstance(store, PacsDatastore):
        store.watched = True
        arguments = (store, seconds, known)
        threading.Thread(target=_look_on, args=arguments, name="medsa-pacs", daemon=True).start()
    else:
        known.set()
    return known


def look_once(store: Any) -> None:
    """Asks a PACS for its list; nothing for a folder. Labels are sent and taken by the server alone.

    Where a series is new it asks again a moment later: only what two looks have found alike is complete.
    """
    if isinstance(store, PacsDatastore):
        try:
            store.list_series()
            if store.series.is_changing():
                time.sleep(FIRST_S)
                store.list_series()
        except PacsError as error:
            log.warning("PACS: %s; what is known of it counts", error)


def delivery(store: Any, image: str, version: int) -> str | None:
    """Whether the PACS has a label version: "stored", "waiting", or why it never can; None for a folder."""
    return store.delivery(image, version) if isinstance(store, PacsDatastore) else None


def pacs_status(store: Any) -> dict[str, Any] | None:
    """For GET /medsa/status; None for a folder."""
    return store.pacs_status() if isinstance(store, PacsDatastore) else None


def _look_on(store: PacsDatastore, seconds: float, known: threading.Event) -> None:
    looks = listed = 0
    while True:
        store.knock.clear()
        is_listed = False
        try:
            is_listed = store.look()
        except Exception:
            # The thread has to outlive whatever a PACS sends.
            log.exception("looking at the PACS failed; it is tried again")
        looks, listed = looks + 1, listed + is_listed
        # A series is offered when two looks have found it alike.
        if listed > 1 or not is_listed:
            known.set()
        store.knock.wait(seconds if looks > 1 else min(seconds, FIRST_S))


def _series_folder(address: str, parts: Parts) -> SeriesFolder:
    parsed = urlsplit(address)
    if not parsed.hostname:
        raise SettingsError("studies", address, "a folder, or the address of a DICOMweb service")
    if parsed.username or parsed.password:
        raise InputError(
            "studies",
            "an address with a user or a password in it",
            "an address without; set them in the environment",
        )
    serving = parts.settings.serving
    name = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    root = serving.pacs_cache or parts.state / "pacs"
    return SeriesFolder(root / name, Pacs.from_environment(address), serving.pacs_modalities)


def _codes(task: TaskSettings) -> dict[str, LabelCode]:
    return {
        name: LabelCode(_code(said), said.colour, said.modifier and _code(said.modifier))
        for name, said in task.codes.items()
    }


def _code(said: CodedName) -> Code:
    return Code(said.code, said.scheme, said.meaning)
