"""A real Chromium on OHIF, a real Orthanc and the real server, as `make serve` starts them."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import browser_viewer
import pytest
from browser_station import Station, station
from browser_viewer import Viewer, browser_page

from lib.dicom.orthanc import INSTALL, Orthanc

ROOT = Path(__file__).resolve().parents[2]
SHOTS = Path(os.environ.get("MEDSA_SHOTS") or ROOT / "artifacts" / "browser")


@pytest.fixture(scope="session")
def can_browse() -> None:
    """Skips where a part that is installed beside Python is missing."""
    if not Orthanc.is_installed():
        pytest.skip(f"no Orthanc with DICOMweb here: {INSTALL}")
    if browser_viewer.chromium() is None:
        pytest.skip(f"no Chromium here: {browser_viewer.INSTALL}")


@pytest.fixture(scope="module")
def start_station(
    can_browse: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Station]]:
    """start_station(*options, **conf) -> all that `make serve` starts, for this module."""
    with ExitStack() as running:
        yield lambda *options, **conf: running.enter_context(
            station(tmp_path_factory.mktemp("station"), options, **conf)
        )


@pytest.fixture
def open_viewer(request: pytest.FixtureRequest) -> Iterator[Callable[[Station], Viewer]]:
    """open_viewer(station) -> OHIF in a browser of its own; a screenshot is kept where the test fails."""
    opened: list[Viewer] = []
    with browser_page() as page:

        def start(at: Station) -> Viewer:
            opened.append(Viewer(page, at.url, SHOTS / request.node.name.replace("/", "_")))
            return opened[-1]

        yield start
        for viewer in opened:
            if getattr(request.node, "failed", False):
                viewer.shot("failed")
            assert viewer.errors == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.failed = report.failed  # type: ignore[attr-defined]
    return report
