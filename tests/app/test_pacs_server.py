"""The real server on a real Orthanc, asked as OHIF and 3D Slicer ask."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from requests_toolbelt import MultipartDecoder

from lib.datastore.series_folder import SeriesFolder
from lib.dicom.orthanc import Orthanc
from lib.dicom.pacs import Pacs
from lib.dicom.seg_reader import read_segments
from lib.dicom.series_writer import SeriesNames, write_series
from lib.volume import Volume, load_volume, save_mask

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

CENTRE, SHAPE = (20, 18, 10), (40, 36, 20)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def series(seed: int, folder: Path) -> tuple[str, list[Path], np.ndarray]:
    """A bright ellipsoid in an oblique CT: its SeriesInstanceUID, files and mask."""
    rng = np.random.default_rng(seed)
    place = np.indices(SHAPE) - np.reshape(CENTRE, (3, 1, 1, 1))
    radii = np.reshape(np.array([9, 8, 5]) + rng.uniform(-1, 1, 3), (3, 1, 1, 1))
    inside = ((place / radii) ** 2).sum(axis=0) < 1
    array = (100 * inside + rng.normal(0, 10, SHAPE)).astype(np.int16)
    turn = np.deg2rad(25)
    lps = np.eye(4)
    lps[:3, :3] = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) * (
        1.0,
        1.25,
        2.5,
    )
    names = SeriesNames(f"made{seed}", "ellipsoid", f"pacs server {seed}")
    files = write_series(Volume(array, _LPS_TO_RAS @ lps), names, folder / str(seed))
    return names.series, files, inside.astype(np.uint8)


@pytest.fixture
def served(
    started_orthanc: Orthanc,
    orthanc: Orthanc,
    upload: Any,
    serve: Callable[..., Any],
    tmp_path: Path,
) -> tuple[Any, dict[str, np.ndarray]]:
    """The server over four series, and their true masks by SeriesInstanceUID."""
    truth = {}
    for seed in range(4):
        uid, files, mask = series(seed, tmp_path / "dicom")
        upload(orthanc, files)
        truth[uid] = mask
    server = serve(orthanc.url, tmp_path, pacs_seconds="1", train_minutes="0.05")
    assert server.get("/info/").json()["datastore"]["total"] == 4, "whoever asks first knows them all"
    return server, truth


def submit(server: Any, image: str, mask: np.ndarray, name: str = "object", idx: int = 1) -> httpx.Response:
    """As the button in OHIF does."""
    params = {"label_info": [{"name": name, "idx": idx}], "user": "ann"}
    files = {
        "params": (None, json.dumps(params)),
        "label": ("label.bin", (mask * idx).astype(np.uint8).tobytes(order="F"), "application/octet-stream"),
    }
    with server.client() as client:
        return client.put("/datastore/label", params={"image": image}, files=files)


def test_a_case_is_offered_clicked_submitted_and_learned_from(
    served: Any, orthanc: Orthanc, wait_until: Any, segmentations: Any, tmp_path: Path
) -> None:
    server, truth = served
    offered = server.post("/activelearning/random", {}).json()["id"]
    assert offered in truth
    answer = server.infer({"foreground": [list(CENTRE)]}, image=offered, output="json")
    assert answer.status_code == 200, answer.text

    first, second, third = list(truth)[:3]
    for image in (first, second):
        assert submit(server, image, truth[image]).status_code == 200
    assert server.get("/info/").json()["datastore"]["completed"] == 2, "right a moment after a submit"
    wait_until(lambda: server.status()["pacs"]["waiting_labels"] == [], "both labels in the PACS")
    assert len(segmentations(orthanc)) == 2

    assert submit(server, third, truth[third]).status_code == 200
    wait_until(lambda: server.status()["last_run"] is not None, "the training that three labels start")
    run = json.loads((server.state / "runs.jsonl").read_text().splitlines()[0])
    assert set(run["label_digests"]) == {first, second, third}
    assert run["skipped"] == []
    (left,) = set(truth) - {first, second, third}
    wait_until(lambda: server.post("/activelearning/random", {}).json().get("id") == left, "the last case")

    folder = SeriesFolder(tmp_path / "cold", Pacs(orthanc.url), ["CT"])
    folder.refresh()
    folder.refresh()  # a series is offered when two looks have found it alike
    _, grid = folder.headers(first)
    found = [
        pydicom.dcmread(Pacs(orthanc.url).fetch(entry, tmp_path / entry.series)[0])
        for entry in Pacs(orthanc.url).find(["SEG"])
    ]
    (seg,) = [one for one in found if one.ReferencedSeriesSequence[0].SeriesInstanceUID == first]
    assert np.array_equal(read_segments(seg, grid).as_labels({"object": 1}), truth[first])
    assert "vit_t" in seg.ManufacturerModelName


def test_a_pacs_that_goes_away_loses_no_label(
    served: Any, orthanc: Orthanc, wait_until: Any, segmentations: Any
) -> None:
    server, truth = served
    image = next(iter(truth))
    assert server.get("/datastore/image", image=image).status_code == 200
    orthanc.stop()
    began = time.monotonic()
    saved = submit(server, image, truth[image])
    assert saved.status_code == 200, saved.text
    assert time.monotonic() - began < 30
    assert server.status()["pacs"]["waiting_labels"] == [image]
    wait_until(lambda: "cannot be reached" in str(server.status()["pacs"]["problem"]), "the server to notice")
    unfetched = [uid for uid in truth if uid != image][-1]
    refused = server.infer({"foreground": [list(CENTRE)]}, image=unfetched, output="json")
    assert (refused.status_code, "the PACS cannot be reached" in refused.text) in ((503, True), (200, False))
    orthanc.start()
    wait_until(lambda: server.status()["pacs"]["waiting_labels"] == [], "the label to be sent")
    assert len(segmentations(orthanc)) == 1


def test_a_server_that_starts_before_its_pacs_waits_and_recovers(
    orthanc: Orthanc, upload: Any, serve: Callable[..., Any], wait_until: Any, tmp_path: Path
) -> None:
    uid, files, _ = series(0, tmp_path / "dicom")
    upload(orthanc, files)
    orthanc.stop()
    server = serve(orthanc.url, tmp_path, pacs_seconds="1")
    wait_until(lambda: "cannot be reached" in str(server.status()["pacs"]["problem"]), "the server to say so")
    assert server.get("/info/").json()["datastore"]["total"] == 0
    orthanc.start()
    wait_until(lambda: server.get("/info/").json()["datastore"]["total"] == 1, "the list")
    wait_until(lambda: server.status()["pacs"]["problem"] is None, "the PACS to be there")
    assert server.post("/activelearning/first", {}).json()["id"] == uid


def test_what_cannot_be_annotated_is_passed_over_with_its_reason(
    orthanc: Orthanc, upload: Any, serve: Callable[..., Any], wait_until: Any, tmp_path: Path
) -> None:
    broken, files, _ = series(0, tmp_path / "dicom")
    upload(orthanc, files[:5] + files[6:])
    good, files, _ = series(1, tmp_path / "dicom")
    upload(orthanc, files)
    server = serve(orthanc.url, tmp_path, pacs_seconds="1", auto_train="false")
    wait_until(lambda: server.get("/info/").json()["datastore"]["total"] >= 1, "the list")
    refused = server.infer({"foreground": [list(CENTRE)]}, image=broken, output="json")
    assert refused.status_code in (404, 422), "422 with the reason, or gone from the list by now"
    wait_until(lambda: broken in server.status()["pacs"]["unusable_series"], "the reason")
    assert "gaps" in server.status()["pacs"]["unusable_series"][broken]
    assert server.post("/activelearning/first", {}).json()["id"] == good


def test_3d_slicers_requests_work_on_the_same_series(
    served: Any, orthanc: Orthanc, wait_until: Any, segmentations: Any, tmp_path: Path
) -> None:
    server, truth = served
    info = server.get("/info/").json()
    assert info["models"]["medsa"]["type"] == "deepgrow"
    sample = server.post("/activelearning/medsa", {"client_id": "slicer-1"}).json()
    image = sample["id"]
    assert sample["SeriesInstanceUID"] == image
    assert (
        server.get("/datastore/image/info", image=image).json()["StudyInstanceUID"]
        == sample["StudyInstanceUID"]
    )
    downloaded = server.get("/datastore/image", image=image)
    assert downloaded.status_code == 200
    (tmp_path / "image.nrrd").write_bytes(downloaded.content)
    volume = load_volume(tmp_path / "image.nrrd")
    assert volume.shape_ijk == SHAPE

    asked = {"foreground": [list(CENTRE)], "background": [], "label": "object", "client_id": "slicer-1"}
    answer = server.infer(asked, image=image)
    parts = MultipartDecoder(answer.content, answer.headers["content-type"]).parts
    (tmp_path / "mask.nii.gz").write_bytes(parts[1].content)
    assert load_volume(tmp_path / "mask.nii.gz").array[CENTRE] == 1

    # All segments are named, also those without a voxel, with numbers of Slicer's own.
    path = tmp_path / "label.nii.gz"
    save_mask(truth[image] * np.uint8(2), volume, path)
    named = {
        "label_info": [{"name": "background", "idx": 1}, {"name": "object", "idx": 2}],
        "client_id": "slicer-1",
    }
    saved = server.save(image, path, named).json()
    # A busy machine answers before the PACS has it; it gets there all the same.
    assert (saved["version"], saved["pacs"] in {"stored", "waiting"}) == (1, True)
    wait_until(lambda: server.status()["pacs"]["waiting_labels"] == [], "the label in the PACS")
    assert len(segmentations(orthanc)) == 1
    back = server.get("/datastore/label", label=image, tag="final")
    (tmp_path / "back.nii.gz").write_bytes(back.content)
    assert np.array_equal(load_volume(tmp_path / "back.nii.gz").array, truth[image])


def test_a_label_of_100_mb_that_does_not_fit_is_refused_and_nothing_is_kept(
    served: Any, orthanc: Orthanc, segmentations: Any
) -> None:
    server, truth = served
    image = next(iter(truth))
    files = {"params": (None, "{}"), "label": ("label.bin", bytes(100 << 20), "application/octet-stream")}
    with server.client() as client:
        answer = client.put("/datastore/label", params={"image": image}, files=files)
    assert answer.status_code == 422
    assert "more was sent; shape (40, 36, 20) needs 28800 bytes" in answer.json()["detail"]
    assert server.get(f"/medsa/cases/{image}").json()["labels"] == []
    assert segmentations(orthanc) == []


def test_an_empty_mask_is_kept_and_the_pacs_is_not_asked_for_what_dicom_lacks(
    served: Any, orthanc: Orthanc, wait_until: Any, segmentations: Any
) -> None:
    server, truth = served
    image = next(iter(truth))
    saved = submit(server, image, np.zeros(SHAPE, np.uint8)).json()
    assert saved["version"] == 1
    wait_until(lambda: server.status()["pacs"]["waiting_labels"] == [], "the label to be looked at")
    (reason,) = server.status()["pacs"]["refused_labels"].values()
    assert "it is empty" in reason
    assert saved["pacs"] in {"waiting", reason}
    assert segmentations(orthanc) == []
    assert [one["version"] for one in server.get(f"/medsa/cases/{image}").json()["labels"]] == [1]


def test_no_search_and_no_password_is_in_the_servers_log(served: Any) -> None:
    server, _ = served
    assert server.get("/proxy/dicom/qido/studies", PatientName="SECRETNAME", limit="5").json() == []
    assert "SECRETNAME" not in (server.state.parent / "server.log").read_text(errors="replace")
