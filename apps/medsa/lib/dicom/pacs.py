"""A PACS that speaks DICOMweb (PS3.18): finding series, fetching them, storing segmentations.

Concurrency: a `Pacs` may be used by several threads; each has a connection of its own.
"""

import hashlib
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from lib.errors import PacsError, PacsUnreachableError

log = logging.getLogger(__name__)
# They log every request, and what is searched for may be a patient.
for chatty in ("dicomweb_client", "httpx"):
    logging.getLogger(chatty).setLevel(logging.WARNING)

USER, PASSWORD = "MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD"
TIMEOUT_S = (5.0, 120.0)  # to connect; between two pieces of an answer
FIELDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesDescription",
    "PatientID",
    "NumberOfSeriesRelatedInstances",
)
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class SeriesEntry:
    """A series as the PACS lists it; `instances` is None where it does not count them.

    `patient` tells one PatientID from another and does not say it ("": there is none).
    """

    study: str
    series: str
    modality: str
    description: str = ""
    instances: int | None = None
    patient: str = ""


def is_loopback(url: str) -> bool:
    """Whether it is on this machine, which no proxy that the environment names is to be asked for."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


class Pacs:
    """The PACS at `url`; user and password, if there are any, are in no log and no error."""

    def __init__(self, url: str, user: str | None = None, password: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._login = (user, password) if user and password else None
        self._own = threading.local()

    @classmethod
    def from_environment(cls, url: str) -> "Pacs":
        """With the user and password that MONAI Label's own variables hold."""
        return cls(url, os.environ.get(USER), os.environ.get(PASSWORD))

    def find(self, modalities: Sequence[str]) -> list[SeriesEntry]:
        """All series of these modalities. Raises PacsUnreachableError or PacsError, as all of these do."""
        found: dict[str, SeriesEntry] = {}
        for modality in modalities:
            with self._translated(f"searching series of modality {modality}"):
                answers = self._client.search_for_series(
                    search_filters={"Modality": modality}, fields=FIELDS, get_remaining=True
                )
            for entry in map(_entry, answers):
                if entry is not None and entry.modality == modality:
                    found[entry.series] = entry
        return list(found.values())

    def headers(self, entry: SeriesEntry) -> list[Dataset]:
        """What the instances of a series say but for their pixels."""
        with self._translated("reading a series' headers"):
            return [
                Dataset.from_json(answer, _without_pixels)
                for answer in self._client.retrieve_series_metadata(entry.study, entry.series)
            ]

    def fetch(self, entry: SeriesEntry, folder: Path) -> list[Path]:
        """The instances of a series as files in `folder`, which appears whole or not at all."""
        if not folder.is_dir():
            part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
            part.mkdir(parents=True)
            try:
                self._fetch_into(entry, part)
                part.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise  # nobody else was quicker
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return sorted(folder.glob("*.dcm"))

    def store(self, dataset: Dataset) -> None:
        """Keeps one instance. Raises PacsError, too, where the PACS takes it and says that it did not."""
        self.store_all([dataset])

    def store_all(self, datasets: Sequence[Dataset]) -> None:
        """Keeps all these instances; raises PacsError where the PACS says that it did not keep each of them."""
        with self._translated("storing"):
            answer = self._client.store_instances(datasets)
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = failed[0].get("FailureReason", "unknown")
            raise PacsError(f"the PACS did not store it: failure reason {reason}")

    def _fetch_into(self, entry: SeriesEntry, folder: Path) -> None:
        count = 0
        with self._translated("fetching a series"):
            for count, instance in enumerate(self._client.iter_series(entry.study, entry.series), 1):
                instance.save_as(folder / f"{count:05d}.dcm", write_like_original=False)
        if count == 0 or (entry.instances is not None and count < entry.instances):
            raise PacsError(
                f"the PACS sent {count} of {entry.instances or 'some'} instances; it is tried again"
            )

    @property
    def _client(self) -> DICOMwebClient:
        client: DICOMwebClient | None = getattr(self._own, "client", None)
        if client is None:
            session = requests.Session()
            session.auth = self._login
            session.trust_env = not is_loopback(self.url)
            for scheme in ("http://", "https://"):
                session.mount(scheme, _Patient())
            client = DICOMwebClient(self.url, session=session)
            client.set_http_retry_params(retry=False)
            self._own.client = client
        return client

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """What requests raises as medsa's own errors, without the address: it may hold a password."""
        try:
            yield
        except (requests.ConnectionError, requests.Timeout) as error:
            raise PacsUnreachableError(
                f"the PACS cannot be reached ({doing}: {type(error).__name__})"
            ) from error
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            raise PacsError(f"the PACS answered {status} ({doing})") from error
        except (requests.RequestException, InvalidDicomError, ValueError, KeyError, OSError) as error:
            raise PacsError(f"the PACS sent what cannot be read ({doing}: {type(error).__name__})") from error


def _without_pixels(tag: str, vr: str, uri: str) -> None:
    """What stands in the headers for pixels, which are not fetched with them."""


class _Patient(HTTPAdapter):
    """Waits for no answer for ever, which requests does unless it is told."""

    def send(self, request: Any, **named: Any) -> Any:  # type: ignore[override]
        if named.get("timeout") is None:
            named["timeout"] = TIMEOUT_S
        return super().send(request, **named)


def _entry(answer: dict[str, Any]) -> SeriesEntry | None:
    """None for a series whose names are blank: nothing could refer to it."""
    found = Dataset.from_json(answer)
    study, series = (str(found.get(name) or "").strip() for name in ("StudyInstanceUID", "SeriesInstanceUID"))
    if not _UID.fullmatch(study) or not _UID.fullmatch(series):
        # It becomes the name of files: anything else could name others.
        log.warning("a series whose identifier is none is left out of the PACS's list")
        return None
    count = found.get("NumberOfSeriesRelatedInstances")
    return SeriesEntry(
        study,
        series,
        str(found.get("Modality") or ""),
        str(found.get("SeriesDescription") or ""),
        None if count in (None, "") else int(count),
        _pseudonym(str(found.get("PatientID") or "").strip()),
    )


def _pseudonym(patient_id: str) -> str:
    """It becomes part of records, in which nobody should have to look for patients."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16] if patient_id else ""
