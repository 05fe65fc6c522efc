"""DICOM files of a folder into a PACS."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from lib.dicom.pacs import Pacs
from lib.errors import NotFoundError, PacsError, PacsUnreachableError

BATCH = 32  # instances a request: few round trips, little memory


@dataclass
class Uploaded:
    """How many instances were stored, how many files are not DICOM, and by name what the PACS refused and why."""

    stored: int = 0
    others: int = 0
    refused: dict[str, str] = field(default_factory=dict)


def upload_folder(pacs: Pacs, folder: Path) -> Uploaded:
    """Stores all DICOM files in and below `folder`; one that is refused does not keep the others out.

    Raises NotFoundError for what is no folder, PacsUnreachableError where the PACS does not answer.
    """
    if not folder.is_dir():
        raise NotFoundError("folder", str(folder), "a folder with DICOM files")
    found = Uploaded()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for batch in _batches(_readable(files, found)):
        try:
            pacs.store_all([dataset for _, dataset in batch])
            found.stored += len(batch)
        except PacsUnreachableError:
            raise
        except PacsError:
            _one_by_one(pacs, batch, found)
    return found


def _readable(files: Iterable[Path], found: Uploaded) -> Iterator[tuple[Path, Dataset]]:
    for path in files:
        try:
            yield path, pydicom.dcmread(path)
        except InvalidDicomError:
            found.others += 1
        except Exception as error:  # noqa: BLE001 (said of the file, below)
            # A file that is cut off makes pydicom raise whatever it was about to read.
            found.refused[path.name] = f"it cannot be read ({type(error).__name__})"


def _batches(pairs: Iterable[tuple[Path, Dataset]]) -> Iterator[list[tuple[Path, Dataset]]]:
    batch: list[tuple[Path, Dataset]] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _one_by_one(pacs: Pacs, batch: Iterable[tuple[Path, Dataset]], found: Uploaded) -> None:
    for path, dataset in batch:
        try:
            pacs.store(dataset)
            found.stored += 1
        except PacsUnreachableError:
            raise
        except PacsError as error:
            found.refused[path.name] = str(error)
