"""What an annotator in OHIF meets of a PACS: real MR series, and one that goes away in the middle."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from browser_loop import LABELS, SAVED, answer_of, labels_in_pacs
from browser_station import station

from lib.dicom.orthanc import Orthanc
from lib.dicom.pacs import Pacs
from lib.dicom.upload import upload_folder

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]


@pytest.fixture
def on_own_pacs(can_browse: None, orthanc: Orthanc, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """on_own_pacs(task) -> a station whose PACS is the test's own `orthanc`."""
    with ExitStack() as running:

        def start(task: str) -> Any:
            options = ("--studies", orthanc.url, "--task", task)
            at = running.enter_context(
                station(tmp_path / "station", options, auto_train="false", warm="false")
            )
            return replace(at, pacs_url=orthanc.url)

        yield start


def test_a_label_submitted_while_the_pacs_is_away_is_sent_when_it_is_back(
    orthanc: Orthanc,
    make_series: Callable[..., Any],
    on_own_pacs: Callable[..., Any],
    open_viewer: Callable[..., Any],
    tmp_path: Path,
) -> None:
    volume, files = make_series()
    upload_folder(Pacs(orthanc.url), files[0].parent)
    at = on_own_pacs("demo")
    at.wait_for_images(1)
    header = pydicom.dcmread(files[0])
    viewer = open_viewer(at)
    viewer.open(header.StudyInstanceUID, header.SeriesInstanceUID)
    viewer.choose("liver")
    viewer.click([size // 2 for size in volume.shape_ijk])
    shown = viewer.mask("liver")
    assert shown.any()
    orthanc.stop()
    assert viewer.submit() == "Saved as version 1; it goes to the PACS as soon as that answers."
    viewer.page.get_by_text("cannot be reached").first.wait_for()
    viewer.shot("pacs-away")
    orthanc.start()
    viewer.page.wait_for_function("() => document.querySelector('#medsa-dock [data-part=problem]').hidden")
    (stored,) = labels_in_pacs(at, header.SeriesInstanceUID, tmp_path / "cold")
    assert np.array_equal(stored, shown * np.uint8(LABELS["liver"]))


@pytest.mark.data
def test_a_real_mr_series_is_annotated_and_its_label_comes_back(
    data_dir: Path,
    orthanc: Orthanc,
    on_own_pacs: Callable[..., Any],
    open_viewer: Callable[..., Any],
    tmp_path: Path,
) -> None:
    upload_folder(Pacs(orthanc.url), data_dir / "dicom_mr_prostate")
    at = on_own_pacs("object")
    at.wait_for_images(2)
    viewer = open_viewer(at)
    (entry, _) = Pacs(orthanc.url).find(["MR"])
    viewer.open(entry.study, entry.series)
    volume = viewer.labelmap().shape
    assert volume[:2] == (384, 384)
    viewer.choose("object")
    centre = [192, 192, volume[2] // 2]
    asked = viewer.click(centre)
    viewer.shot("real-mr")
    (clicked,) = asked["foreground"]
    # Two voxels share a pixel of the screen here.
    assert np.abs(np.subtract(clicked, centre)).max() <= 1
    assert clicked[2] == centre[2]
    mask = answer_of(at, entry.series, "medsa", asked) > 0
    assert mask[tuple(clicked)]
    assert np.array_equal(viewer.mask("object"), mask)
    assert SAVED.fullmatch(viewer.submit())
    (stored,) = labels_in_pacs(at, entry.series, tmp_path / "cold", {"object": 1})
    assert np.array_equal(stored, mask.astype(np.uint8))
