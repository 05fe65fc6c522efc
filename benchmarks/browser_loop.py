"""The whole loop as an annotator goes through it in OHIF, from the study list to the case that the strategy chose."""

import io
import json
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import nrrd
import numpy as np
import pydicom
from browser_station import PATIENCE_S, Station
from browser_viewer import Viewer
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from lib.datastore.series_folder import SeriesFolder
from lib.dicom.pacs import Pacs
from lib.dicom.seg_reader import read_segments
from lib.volume import load_volume

LABELS = {"liver": 1, "spleen": 2, "kidney": 3}
CLICKED, PAINTED = ("liver", "spleen"), "kidney"
TRAINS_AFTER = 5  # labels; all but one come from others
# Half a minute on five labels may well make something worse, and nothing better for sure. That is no question here: the
# gate asks only whether something is better on average.
LOOP_SETTINGS = {
    "train_after": str(TRAINS_AFTER),
    "train_minutes": "0.5",
    "gate_margin": "0.9",
    "gate_confidence": "0.51",
}

# A busy PACS, or machine, has it a moment later.
SAVED = re.compile(r"Saved as version 1(, in the PACS|; it goes to the PACS as soon as that answers)\.")

Mask = NDArray[np.uint8]


def whole_loop(at: Station, viewer: Viewer, patient: str, cold: Path) -> None:
    """One case of a station that trains after three labels. Raises AssertionError where anything is not as it must be.

    `cold` is an empty folder, for reading the PACS with nothing known of it.
    """
    truth = truths(at)
    viewer.study_list(*(f"PHANTOM-{number:03d}" for number in range(1, len(truth) + 1)))
    viewer.shot("study-list")
    viewer.open_from_list(patient)
    series = viewer.series()
    for other in [one for one in truth if one != series][: TRAINS_AFTER - 1]:
        submit_over_http(at, other, truth[other], "bob")
    click_labels(at, viewer, series, truth[series])
    paint_label(viewer, truth[series])
    submit_label(at, viewer, series, cold)
    wait_for_training(at)
    new_version_answers(viewer, truth[series])
    next_case(at, viewer)


def click_labels(at: Station, viewer: Viewer, series: str, truth: Mask) -> None:
    """One click for each of two labels; what the viewer shows is what the server answers, voxel by voxel."""
    answered = {}
    for label in CLICKED:
        viewer.choose(label)
        voxel = middle(truth == LABELS[label])
        asked = viewer.click(voxel)
        assert asked["foreground"] == [voxel], f"clicked {voxel}, asked {asked['foreground']}"
        assert asked["label"] == label
        answered[label] = answer_of(at, series, "medsa", asked) > 0
        viewer.shot(f"clicked-{label}")
    first, second = CLICKED
    assert np.array_equal(viewer.mask(first), answered[first])
    # Where the two overlap, the panel keeps the first.
    assert np.array_equal(viewer.mask(second), answered[second] & ~answered[first])


def paint_label(viewer: Viewer, truth: Mask) -> None:
    """A stroke of the brush; nothing else changes."""
    before = viewer.labelmap()
    viewer.paint(PAINTED, middle(truth == LABELS[PAINTED]))
    viewer.shot("painted")
    after, number = viewer.labelmap(), viewer.segments()[PAINTED]
    assert (after == number).any(), "the brush painted nothing"
    assert np.array_equal(after[after != number], before[after != number])


def submit_label(at: Station, viewer: Viewer, series: str, cold: Path) -> None:
    """What is in the PACS afterwards is what the viewer shows."""
    shown = viewer.labelmap()
    said = viewer.submit()
    assert SAVED.fullmatch(said), said
    viewer.shot("submitted")
    (stored,) = labels_in_pacs(at, series, cold)
    for label, number in viewer.segments().items():
        assert np.array_equal(stored == LABELS[label], shown == number), f"{label} was altered on the way"


def wait_for_training(at: Station) -> None:
    """Until the training that the labels started has published a version."""
    deadline = time.monotonic() + PATIENCE_S
    while (run := at.status()["last_run"]) is None:
        assert time.monotonic() < deadline, "no training came to an end"
        time.sleep(0.5)
    assert run["decision"] == "published", run


def new_version_answers(viewer: Viewer, truth: Mask) -> None:
    """The next click is answered by what was trained, and the dock says so."""
    viewer.page.wait_for_function("() => document.getElementById('medsa-dock').dataset.serving === '1'")
    viewer.choose(CLICKED[0])
    i, j, k = middle(truth == LABELS[CLICKED[0]])
    viewer.click((i, j, k + 1))  # where a click is already, a press takes hold of that one
    viewer.shot("new-version-answers")
    assert "vit_t, version 1 answered" in viewer.dock.inner_text()


def next_case(at: Station, viewer: Viewer) -> str:
    """Next sample opens the case that the strategy has for this person; its SeriesInstanceUID."""
    body = {"client_id": viewer.page.evaluate("window.medsa.client()")}
    expected = httpx.post(f"{at.url}/activelearning/medsa", json=body, timeout=PATIENCE_S).json()["id"]
    before = viewer.series()
    # The click that the new version answered is not submitted: that is asked about before it is left.
    asked: list[str] = []
    viewer.page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    viewer.page.locator("#medsa-next").click()
    viewer.page.wait_for_function("() => !document.getElementById('medsa-next').disabled")
    assert asked, "work was left without a question"
    assert viewer.series() == before
    viewer.page.on("dialog", lambda dialog: dialog.accept())
    viewer.next_sample()
    viewer.shot("next-case")
    assert viewer.series() == expected != before
    assert viewer.page.locator("#medsa-offer").inner_text().startswith("Case 1 of ")
    return str(expected)


def truths(at: Station) -> dict[str, Mask]:
    """SeriesInstanceUID -> true label map (i, j, k) of the demo series."""
    return {path.name.removesuffix(".nii.gz"): load_volume(path).array for path in sorted(at.truth.iterdir())}


def middle(mask: NDArray[Any]) -> list[int]:
    """The voxel (i, j, k) deepest inside."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    return [int(place) for place in np.unravel_index(depth.argmax(), mask.shape)]


def answer_of(at: Station, series: str, model: str, params: Mapping[str, Any]) -> Mask:
    """The mask (i, j, k) that the server gives for these prompts to somebody who never asked before."""
    asked = {"result_extension": ".nrrd", **params, "client_id": uuid.uuid4().hex}
    answer = httpx.post(
        f"{at.url}/infer/{model}",
        params={"image": series, "output": "image"},
        files={"params": (None, json.dumps(asked))},
        timeout=PATIENCE_S,
    )
    stream = io.BytesIO(answer.raise_for_status().content)
    header = nrrd.read_header(stream)
    return np.asarray(nrrd.read_data(header, stream, index_order="F"))


def submit_over_http(at: Station, series: str, values: Mask, user: str) -> dict[str, Any]:
    """A label from somebody else, at another machine; what the server says of it."""
    info = [{"name": name, "idx": value} for name, value in LABELS.items() if (values == value).any()]
    files = {
        "params": (None, json.dumps({"label_info": info, "client_id": user})),
        "label": ("label.bin", values.astype(np.uint8).tobytes(order="F"), "application/octet-stream"),
    }
    answer = httpx.put(f"{at.url}/datastore/label", params={"image": series}, files=files, timeout=PATIENCE_S)
    return dict(answer.raise_for_status().json())


def labels_in_pacs(at: Station, series: str, cold: Path, labels: Mapping[str, int] = LABELS) -> list[Mask]:
    """All segmentations of a series in the PACS as label maps (i, j, k), oldest first, read with an empty cache.

    As soon as no label waits to be sent; raises AssertionError where one was refused.
    """
    deadline = time.monotonic() + PATIENCE_S
    while at.status()["pacs"]["waiting_labels"]:
        assert time.monotonic() < deadline, "the labels were not sent"
        time.sleep(0.1)
    assert at.status()["pacs"]["refused_labels"] == {}
    pacs = Pacs(at.pacs_url)
    folder = SeriesFolder(cold, pacs, ["CT", "MR"])
    folder.refresh()
    folder.refresh()  # a series is offered when two looks have found it alike
    _, grid = folder.headers(series)
    study = folder.entries()[series].study
    stored = [entry for entry in pacs.find(["SEG"]) if entry.study == study]
    found = [pydicom.dcmread(pacs.fetch(entry, cold / entry.series)[0]) for entry in stored]
    own = [one for one in found if one.ReferencedSeriesSequence[0].SeriesInstanceUID == series]
    own.sort(key=lambda one: int(str(one.ContentDescription).removeprefix("label version ")))
    return [read_segments(one, grid).as_labels(labels) for one in own]
