"""What annotating in OHIF against a PACS is worth: `python benchmarks/browser.py --json FILE`, or `make bench-browser`.

Real Chromium, Orthanc and server, started as `make serve` starts them. Seconds are those of one machine, which draws
OHIF's volumes on its processor where it has no GPU. `--part` picks parts; `--runs` is how many loops in a row.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from playwright.sync_api import Error as BrowserError

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "apps" / "medsa"), str(ROOT / "benchmarks")]

from base import positive  # noqa: E402 (the app and the benchmarks are folders, not packages)
from base_figures import write_figures  # noqa: E402
from browser_loop import (  # noqa: E402
    LABELS,
    LOOP_SETTINGS,
    labels_in_pacs,
    middle,
    submit_over_http,
    truths,
    whole_loop,
)
from browser_station import PATIENCE_S, Station, station  # noqa: E402
from browser_viewer import Viewer, browser_page  # noqa: E402
from interaction_server import wait_until  # noqa: E402
from network import Figure, described  # noqa: E402

from lib.dicom.grid import series_grid  # noqa: E402
from lib.dicom.image import read_headers  # noqa: E402
from lib.dicom.pacs import Pacs  # noqa: E402
from lib.dicom.seg_writer import SegOrigin, write_seg  # noqa: E402
from lib.dicom.series_writer import SeriesNames, write_series  # noqa: E402
from lib.dicom.upload import upload_folder  # noqa: E402
from lib.volume import Volume  # noqa: E402

PARTS = ("loops", "overlay", "submit", "roundtrips", "foreign")
RUNS, OVERLAYS, SUBMITS = 10, 5, 5
LARGE, SMALL = (512, 512, 100), (20, 14, 9)
SUBSETS = (("liver",), ("kidney",), ("liver", "kidney"), ("spleen", "liver"), ("liver", "spleen", "kidney"))
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TILT = np.deg2rad(25)
# Directions of row, column and normal (LPS) as the columns, and whether instances are numbered downwards.
GEOMETRIES: Mapping[str, tuple[np.ndarray, bool]] = {
    "axial": (np.eye(3), False),
    "sagittal": (np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=float), False),
    "coronal": (np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float), False),
    "oblique": (
        np.array([[np.cos(_TILT), -np.sin(_TILT), 0], [np.sin(_TILT), np.cos(_TILT), 0], [0, 0, 1]]),
        False,
    ),
    "flipped": (np.diag([-1.0, 1.0, -1.0]), False),
    "descending": (np.eye(3), True),
}


def loops(work: Path, runs: int) -> list[Figure]:
    """The whole loop again and again, each on a machine where nobody has annotated yet."""
    good, seconds, why = 0, [], ""
    for number in range(runs):
        began = time.monotonic()
        patient = f"PHANTOM-{number % 8 + 1:03d}"
        try:
            with ExitStack() as block:
                at = block.enter_context(station(work / f"loop-{number}", **LOOP_SETTINGS))
                at.wait_for_images(8)
                page = block.enter_context(browser_page())
                whole_loop(
                    at, Viewer(page, at.url, work / f"shots-{number}"), patient, work / f"cold-{number}"
                )
        except (AssertionError, BrowserError, RuntimeError, TimeoutError, httpx.HTTPError) as error:
            why = f"run {number + 1}: {type(error).__name__}: {str(error)[:200]}"
            print(why, flush=True)
        else:
            good += 1
            seconds.append(time.monotonic() - began)
            print(f"run {number + 1}: {seconds[-1]:.0f} s", flush=True)
    name = f"whole browser loops, {runs} in a row"
    typical = f"median {median(seconds):.0f} s a loop, one training in it" if seconds else ""
    return [Figure(name, good, "loops", f"= {RUNS}", good == runs == RUNS, why or typical)]


def overlay(at: Station, work: Path) -> list[Figure]:
    """From asking for the study list to the first mask on the image, of cases that were opened before."""
    walls, own = [], []
    for number in range(OVERLAYS):
        patient = f"PHANTOM-{number + 1:03d}"
        series = _series_of(at, patient)
        at.get("/datastore/image/info", image=series)  # opening a case has it encoded
        wait_until(lambda: _is_warm(at.status()["warming"]), "the case to be warm")
        truth = truths(at)[series]
        with browser_page() as page:
            viewer = Viewer(page, at.url, work / "overlay")
            began = time.monotonic()
            viewer.study_list(patient)
            viewer.open_from_list(patient)
            viewer.choose("liver")
            viewer.click(middle(truth == LABELS["liver"]))
            walls.append(time.monotonic() - began)
            own.append(_waited_for(viewer))
    print(
        f"overlay: {[round(one, 2) for one in walls]} s, of it medsa's {[round(one, 3) for one in own]} s",
        flush=True,
    )
    return [
        Figure("study list to first overlay, warm case", median(walls), "s", "< 15", median(walls) < 15),
        Figure("of it in medsa's own answers", median(own), "s", "< 1", median(own) < 1),
    ]


def _is_warm(warming: Mapping[str, Any]) -> bool:
    return bool(warming["case"]) and not warming["waiting"] and warming["done"] == warming["of"]


def _waited_for(viewer: Viewer) -> float:
    """Seconds of medsa's own requests that the page waited for: its information, the case, the mask."""
    entries = viewer.page.evaluate(
        "() => performance.getEntriesByType('resource').map(one => [new URL(one.name).pathname, one.duration])"
    )
    wanted = ("/info/", "/medsa/cases/", "/infer/")
    return sum(duration for path, duration in entries if path.startswith(wanted)) / 1000


def submit(at: Station, work: Path) -> list[Figure]:
    """A label of a large series: from the press of Submit label until the PACS lists its segmentation."""
    names = SeriesNames("LARGE-001", "large", "benchmark large")
    rng = np.random.default_rng(0)
    array = rng.integers(-200, 200, LARGE, dtype=np.int16)
    write_series(Volume(array, _LPS_TO_RAS @ np.diag([0.7, 0.7, 2.0, 1.0])), names, work / "large")
    upload_folder(Pacs(at.pacs_url), work / "large")
    wait_until(lambda: names.series in _listed(at), "the large series to be listed")
    seconds = []
    with browser_page() as page:
        viewer = Viewer(page, at.url, work / "submit")
        viewer.open(names.uid("study"), names.series)
        for number in range(SUBMITS):
            viewer.page.evaluate(_BALL, [60 + 10 * number, 1])
            known = len(Pacs(at.pacs_url).find(["SEG"]))
            began = time.monotonic()
            viewer.page.locator("#medsa-submit").click()
            while len(Pacs(at.pacs_url).find(["SEG"])) == known:
                if time.monotonic() - began > PATIENCE_S:
                    raise TimeoutError(f"the label did not come into the PACS: {viewer.message()}")
                time.sleep(0.02)
            seconds.append(time.monotonic() - began)
            viewer.page.get_by_text(f"Saved as version {number + 1}").first.wait_for()
    print(f"submit: {[round(one, 2) for one in seconds]} s", flush=True)
    name = f"submit of a {' x '.join(map(str, LARGE))} label until it is in the PACS"
    return [Figure(name, median(seconds), "s", "< 3", median(seconds) < 3, f"worst {max(seconds):.2f} s")]


# Paints a ball of that radius in voxels, as a mask that a model would have given.
_BALL = """([radius, value]) => {
  const volume = window.services.segmentationService.getLabelmapVolume('1');
  const [ni, nj, nk] = volume.dimensions, found = volume.voxelManager.getCompleteScalarDataArray().fill(0);
  for (let k = 0; k < nk; k++) for (let j = 0; j < nj; j++) for (let i = 0; i < ni; i++)
    if (Math.hypot(i - ni / 2, j - nj / 2, 2 * (k - nk / 2)) < radius) found[i + ni * (j + nj * k)] = value;
  volume.voxelManager.setCompleteScalarDataArray(found);
}"""


def roundtrips(at: Station, work: Path) -> list[Figure]:
    """Labels through the server into the PACS and back with nothing known of it, series of six directions."""
    exact = 0
    for name, (directions, descending) in GEOMETRIES.items():
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = directions * (0.8, 1.1, 2.5), (-31.5, 12.25, 103.0)
        array = np.random.default_rng(7).integers(-1000, 1000, SMALL, dtype=np.int16)
        numbers = list(range(1, SMALL[2] + 1))
        names = SeriesNames(f"ROUND-{name}", name, f"benchmark {name}")
        write_series(
            Volume(array, _LPS_TO_RAS @ lps), names, work / name, numbers[::-1] if descending else None
        )
        upload_folder(Pacs(at.pacs_url), work / name)
        wait_until(lambda names=names: names.series in _listed(at), f"the series {name} to be listed")
        for number, subset in enumerate(SUBSETS):
            values = np.random.default_rng(number).choice([0, *(LABELS[one] for one in subset)], size=SMALL)
            values[:, :, 0] = 0
            submit_over_http(at, names.series, values.astype(np.uint8), "bench")
            back = labels_in_pacs(at, names.series, Path(tempfile.mkdtemp(dir=work)))
            exact += len(back) == number + 1 and np.array_equal(back[-1], values)
    wanted = len(GEOMETRIES) * len(SUBSETS)
    return [
        Figure("round trips through the PACS, voxel-exact", exact, "labels", f"= {wanted}", exact == wanted)
    ]


def foreign(at: Station, work: Path) -> list[Figure]:
    """A segmentation that another viewer stores: until it waits for training."""
    series = _series_of(at, "PHANTOM-008")
    folder = at.folder / "demo-dicom" / "dicom" / "phantom_008"
    headers = read_headers(sorted(folder.iterdir()))
    origin = SegOrigin(
        "somebody", "another viewer", "1", "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
    )
    written = write_seg(truths(at)[series], LABELS, {}, headers, series_grid(headers), origin)
    before = at.status()["pending_labels"]
    Pacs(at.pacs_url).store(written)
    began = time.monotonic()
    wait_until(lambda: at.status()["pending_labels"] > before, "the segmentation to be noticed")
    seconds = time.monotonic() - began
    return [Figure("foreign segmentation noticed and queued", seconds, "s", "< 60", seconds < 60)]


def _listed(at: Station) -> list[str]:
    return list(at.get("/datastore/", output="all")["objects"])


def _series_of(at: Station, patient: str) -> str:
    found = at.get("/proxy/dicom/qido/series", PatientID=patient, Modality="CT")
    return str(found[0]["0020000E"]["Value"][0])


def measured(parts: Sequence[str], runs: int, work: Path) -> list[Figure]:
    """The figures of these parts."""
    figures: list[Figure] = []
    if "loops" in parts:
        figures += loops(work, runs)
    on_one = {"overlay": overlay, "submit": submit, "roundtrips": roundtrips, "foreign": foreign}
    chosen = [measure for name, measure in on_one.items() if name in parts]
    if chosen:
        # As it is shipped: a PACS is looked at every ten seconds.
        with station(work / "station", auto_train="false", pacs_seconds="10") as at:
            at.wait_for_images(8)
            for measure in chosen:
                figures += measure(at, work)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; a missed bar is a result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    parser.add_argument(
        "--part", action="append", choices=PARTS, metavar="NAME", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--runs", type=positive, default=RUNS, help="loops in a row (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="medsa-browser-") as folder:
        figures = measured(options.part or PARTS, options.runs, Path(folder))
    figures = [
        replace(figure, value=None if figure.value is None else float(figure.value)) for figure in figures
    ]
    print(*map(described, figures), sep="\n", flush=True)
    write_figures(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
