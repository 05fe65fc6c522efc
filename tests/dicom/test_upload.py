"""A folder of DICOM files into a real Orthanc."""

from pathlib import Path

import pytest

from lib.dicom.pacs import Pacs
from lib.dicom.upload import BATCH, upload_folder
from lib.errors import NotFoundError, PacsUnreachableError


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"folder: .*nothing"):
        upload_folder(Pacs("http://127.0.0.1:1/dicom-web"), tmp_path / "nothing")


def test_a_pacs_that_is_away_ends_it(make_series) -> None:
    _, files = make_series()
    with pytest.raises(PacsUnreachableError):
        upload_folder(Pacs("http://127.0.0.1:1/dicom-web"), files[0].parent)


@pytest.mark.server
def test_all_series_below_the_folder_are_stored_and_the_rest_is_counted(
    orthanc, make_series, tmp_path
) -> None:
    make_series("axial", shape=(8, 8, BATCH + 3))
    make_series("oblique")
    (tmp_path / "axial-1" / "notes.txt").write_text("no DICOM")
    found = upload_folder(Pacs(orthanc.url), tmp_path)
    assert (found.stored, found.others, found.refused) == (BATCH + 3 + 9, 1, {})
    assert sorted(entry.instances for entry in Pacs(orthanc.url).find(["CT"])) == [9, BATCH + 3]
    again = upload_folder(Pacs(orthanc.url), tmp_path)
    assert again.stored == found.stored
    assert sorted(entry.instances for entry in Pacs(orthanc.url).find(["CT"])) == [9, BATCH + 3]


@pytest.mark.server
def test_a_damaged_file_does_not_keep_the_others_out(orthanc, make_series) -> None:
    _, files = make_series()
    files[3].write_bytes(files[3].read_bytes()[:300])
    found = upload_folder(Pacs(orthanc.url), files[0].parent)
    assert found.stored == len(files) - 1
    assert list(found.refused) == [files[3].name]
