"""The client against a real Orthanc."""

import numpy as np
import pydicom
import pytest

from lib.dicom.grid import series_grid
from lib.dicom.image import load_series, read_headers
from lib.dicom.pacs import Pacs, _entry
from lib.dicom.seg_reader import read_segments, referenced_series
from lib.dicom.seg_writer import SegOrigin, write_seg
from lib.errors import PacsError, PacsUnreachableError

pytestmark = pytest.mark.server
ORIGIN = SegOrigin("ann", "vit_t", "adapter 3", "1.2.3.4", "1.2.3.5")


def test_series_are_found_fetched_and_labelled(orthanc, make_series, tmp_path, upload, segmentations):
    volume, files = make_series("oblique")
    upload(orthanc, files)
    pacs = Pacs(orthanc.url)
    (entry,) = pacs.find(["MR", "CT"])
    assert (entry.modality, entry.description, entry.instances) == ("CT", "oblique", len(files))
    assert pacs.find(["SEG"]) == []
    fetched = pacs.fetch(entry, tmp_path / "got")
    assert len(fetched) == len(files)
    found, grid = load_series(fetched)
    assert np.array_equal(found.array, volume.array)

    values = (np.random.default_rng(0).random(grid.shape_ijk) < 0.3).astype(np.uint8)
    pacs.store(write_seg(values, {"liver": 1}, {}, read_headers(fetched), grid, ORIGIN))
    pacs.store(write_seg(values, {"liver": 1}, {}, read_headers(fetched), grid, ORIGIN))
    assert segmentations(orthanc) == ["1.2.3.5"], "sent twice it is there once"
    (seg,) = pacs.find(["SEG"])
    assert referenced_series(pacs.headers(seg)[0]) == entry.series
    (stored,) = pacs.fetch(seg, tmp_path / "seg")
    (read,) = read_headers([stored])
    assert read.SeriesInstanceUID == "1.2.3.4"
    assert np.array_equal(
        read_segments(pydicom.dcmread(stored), series_grid(read_headers(files))).numbers, values
    )


def test_one_that_is_down_is_said_to_be_and_is_back_later(orthanc, make_series, upload):
    upload(orthanc, make_series()[1])
    pacs = Pacs(orthanc.url)
    assert len(pacs.find(["CT"])) == 1
    orthanc.stop()
    with pytest.raises(PacsUnreachableError, match="the PACS cannot be reached"):
        pacs.find(["CT"])
    orthanc.start()
    assert len(pacs.find(["CT"])) == 1


def test_a_login_is_sent_and_never_said(orthanc, make_series, caplog, upload):
    orthanc.stop()
    orthanc.login = ("ann", "s3cret-word")
    orthanc.start()
    upload(orthanc, make_series()[1])
    with caplog.at_level("DEBUG"):
        assert len(Pacs(orthanc.url, "ann", "s3cret-word").find(["CT"])) == 1
        with pytest.raises(PacsError, match="the PACS answered 401") as refused:
            Pacs(orthanc.url, "ann", "wr0ng").find(["CT"])
    said = caplog.text + str(refused.value)
    assert "s3cret" not in said
    assert "wr0ng" not in said


def test_it_is_told_by_the_environment(monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "ann")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "word")
    assert Pacs.from_environment("http://127.0.0.1:1/x/")._login == ("ann", "word")
    assert Pacs.from_environment("http://127.0.0.1:1/x/").url == "http://127.0.0.1:1/x"


def test_what_is_no_pacs_is_said_to_be_none(orthanc):
    with pytest.raises(PacsError, match=r"the PACS (answered 404|sent what cannot be read)"):
        Pacs(orthanc.url.replace("dicom-web", "nothing")).find(["CT"])


@pytest.mark.parametrize("name", ["/etc/passwd", "./1.2.3", "../1.2", "", "1..2", "1.2." + "3" * 64])
def test_an_identifier_that_is_none_never_becomes_a_file(name, caplog):
    answer = {"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "0020000E": {"vr": "UI", "Value": [name]}}
    with caplog.at_level("WARNING"):
        assert _entry(answer) is None
    assert "left out" in caplog.text
