"""What viewers send and get, against the real server."""

import gzip
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nibabel
import nrrd
import numpy as np
import pytest
from requests_toolbelt import MultipartDecoder

from lib.activelearning.ranking import STRATEGIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

CLICK = {"foreground": [[20, 18, 10]], "background": []}
OHIF = {
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "result_compress": False,
    "restore_label_idx": False,
}
LabelOf = Callable[[Path, str], Path]


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Any]) -> Any:
    return make_server(cases=6, auto_train="false")


def nrrd_of(answer: httpx.Response) -> tuple[np.ndarray, dict[str, Any]]:
    stream = io.BytesIO(answer.content)
    header = nrrd.read_header(stream)
    return nrrd.read_data(header, stream, index_order="F"), header


def test_info_has_what_viewers_read(server: Any) -> None:
    info = server.get("/info/").json()
    assert info["labels"] == ["object"]
    shown = {name: (model["type"], model["dimension"]) for name, model in info["models"].items()}
    assert shown == {
        "medsa": ("deepgrow", 3),
        "medsa_2d": ("deepgrow", 2),
        "medsa_multi": ("deepedit", 3),
        "medsa_auto": ("segmentation", 3),
        "medsa_scribbles": ("scribbles", 3),
    }
    assert all(model["labels"] == {"object": 1} for model in info["models"].values())
    assert all(model["config"] == {} for model in info["models"].values())
    assert list(info["strategies"]) == list(STRATEGIES)
    assert list(info["trainers"]) == list(info["train_stats"]) == list(info["scoring"]) == ["medsa"]
    assert info["datastore"]["total"] == 7


@pytest.mark.parametrize("image", ["case0", "nrrdcase"])
def test_infer_as_ohif_sends_it(server: Any, image: str) -> None:
    answer = server.infer({**CLICK, **OHIF}, image=image, output="image")
    assert answer.status_code == 200
    mask, header = nrrd_of(answer)
    assert (header["type"], header["encoding"], mask.shape) == ("uint8", "raw", (40, 36, 20))
    assert set(np.unique(mask)) <= {0, 1}
    assert mask.any()


def test_infer_as_slicer_sends_it(server: Any) -> None:
    params = {
        **CLICK,
        "label": "object",
        "client_id": "slicer-1",
        "roi": [30, 8, 28, 8, 3, 17],
        "device": "cpu",
    }
    answer = server.infer(params, image="case1")
    assert answer.headers["content-type"].startswith("multipart/form-data")
    parts = MultipartDecoder(answer.content, answer.headers["content-type"]).parts
    described, image = json.loads(parts[0].content), parts[1]
    assert b'name="params"' in parts[0].headers[b"Content-Disposition"]
    assert b'name="image"' in image.headers[b"Content-Disposition"]
    assert (described["base"], described["version"], described["label"]) == ("vit_t", 0, "object")
    assert described["prompts"]["positive_ijk"] == [[20, 18, 10]]
    assert described["prompts"]["boxes"] == [{"start_ijk": [8, 8, 3], "stop_ijk": [31, 29, 18]}]
    assert described["slices"]
    assert set(described["seconds"]) == {"load", "wait", "encode", "decode", "write", "total"}
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(image.content))
    assert mask.shape == (40, 36, 20)
    assert np.allclose(mask.affine, nibabel.load(server.studies / "case1.nii.gz").affine, atol=1e-4)


def test_2d_answers_the_clicked_slice_only(server: Any) -> None:
    answer = server.infer({**CLICK, **OHIF, "slice": 10}, model="medsa_2d", image="case0", output="image")
    mask, _ = nrrd_of(answer)
    assert np.flatnonzero(mask.any(axis=(0, 1))).tolist() == [10]


def test_the_same_request_gives_the_same_mask(server: Any) -> None:
    first, second = (
        nrrd_of(server.infer({**CLICK, **OHIF}, image="case2", output="image"))[0] for _ in range(2)
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("model", "image", "params", "status", "named"),
    [
        ("nope", "case0", CLICK, 404, "'nope' is not accepted; allowed: medsa, medsa_2d"),
        ("medsa", "nope", CLICK, 404, "'nope'"),
        ("medsa", "/etc/hostname", CLICK, 404, "image"),
        ("medsa", "", CLICK, 422, "image"),
        ("medsa", "case0", {}, 422, "foreground"),
        ("medsa", "case0", {"foreground": [], "background": []}, 422, "foreground"),
        ("medsa", "case0", {"foreground": [[40, 0, 0]]}, 422, "i 0..39, j 0..35, k 0..19"),
        ("medsa", "case0", {"foreground": [[1, 2]]}, 422, "[1, 2]"),
        ("medsa", "case0", {"foreground": "here"}, 422, "'here'"),
        ("medsa", "case0", {**CLICK, "label": "spleen"}, 422, "'spleen' is not accepted; allowed: object"),
        ("medsa", "case0", {**CLICK, "result_extension": ".stl"}, 422, ".nii.gz, .nrrd"),
        ("medsa", "case0", {**CLICK, "result_dtype": "float32"}, 422, "uint8"),
        ("medsa", "case0", "{broken", 422, "a JSON object"),
        ("medsa", "case0", "[1]", 422, "a JSON object"),
    ],
)
def test_a_bad_request_is_refused_by_name(
    server: Any, model: str, image: str, params: Any, status: int, named: str
) -> None:
    answer = server.infer(params, model=model, image=image)
    assert answer.status_code == status
    assert named in answer.json()["detail"]


def test_params_cannot_name_a_file_or_a_model(server: Any) -> None:
    secret = server.studies / "case1.nii.gz"
    answer = server.infer({**CLICK, "image": str(secret), "model": "medsa_2d"}, image="nope")
    assert answer.status_code == 404
    assert "'nope'" in answer.json()["detail"]


def test_an_unreadable_image_is_named_and_the_next_request_works(server: Any) -> None:
    bad = server.studies / "broken.nii.gz"
    bad.write_bytes(b"no image")
    try:
        answers = [server.infer(CLICK, image="broken") for _ in range(1)]
        while (
            answers[-1].status_code == 404
        ):  # the server learns of a new file from the file system, a little later
            answers.append(server.infer(CLICK, image="broken"))
        assert answers[-1].status_code == 422
        assert "broken.nii.gz" in answers[-1].json()["detail"]
        assert server.infer(CLICK, image="case0", output="json").status_code == 200
    finally:
        bad.unlink()


def test_an_uploaded_and_a_session_image_are_answered(server: Any) -> None:
    source = server.studies / "case3.nii.gz"
    with server.client() as client:
        answer = client.post(
            "/infer/medsa?output=json",
            files={"params": (None, json.dumps(CLICK)), "file": ("mine.nii.gz", source.read_bytes())},
        )
        assert answer.status_code == 200, answer.text
        session = client.put("/session/", files={"files": ("mine.nii.gz", source.read_bytes())}).json()
        with_session = client.post(
            "/infer/medsa",
            params={"session_id": session["session_id"], "output": "json"},
            files={"params": (None, json.dumps(CLICK))},
        )
    assert with_session.json()["slices"] == answer.json()["slices"]
    unknown = server.infer(CLICK, session_id="../../etc")
    assert unknown.status_code == 404


def test_other_requests_are_answered_while_one_infers(server: Any) -> None:
    big = np.random.default_rng(0).normal(0, 1, (160, 160, 96)).astype(np.float32)
    content = nibabel.Nifti1Image(big, np.eye(4)).to_bytes()
    answers: list[int] = []

    def infer() -> None:
        with server.client() as client:
            files = {
                "params": (None, json.dumps({"roi": [20, 140, 20, 140, 0, 95]})),
                "file": ("big.nii", content),
            }
            answers.append(client.post("/infer/medsa?output=json", files=files).status_code)

    thread = threading.Thread(target=infer)
    thread.start()
    meanwhile = 0
    while thread.is_alive():
        assert server.get("/info/").status_code == 200
        meanwhile += thread.is_alive()
    assert answers == [200]
    assert meanwhile >= 5, "a server that is blocked answers once, when the other request is done"


def test_images_are_fetched_by_id_only(server: Any) -> None:
    assert (
        server.get("/datastore/image", image="case0").content
        == (server.studies / "case0.nii.gz").read_bytes()
    )
    assert server.get("/datastore/image", image="nope").status_code == 404
    assert server.get("/datastore/image", image="../state/leases").status_code == 404
    assert server.get("/datastore/image/info", image="nope").status_code == 404
    with server.client() as client:
        assert client.head("/datastore/image?image=case0").status_code == 200
        assert client.head("/datastore/image?image=nope").status_code == 404


@pytest.mark.parametrize("tag", ["../../x", "..", "/tmp", "a b"])
def test_a_tag_cannot_leave_the_studies(server: Any, label_of: LabelOf, tag: str) -> None:
    before = labels_and_studies(server)
    answer = server.save("case0", label_of(server.studies, "case0"), tag=tag)
    assert (answer.status_code, answer.json()["detail"].startswith("tag:")) == (422, True)
    assert labels_and_studies(server) == before


def labels_and_studies(server: Any) -> list[Path]:
    """What is there, but for what the server writes in the background."""
    behind = [server.state / name for name in ("embeddings", "scores", "clicked")]
    return [
        path
        for path in sorted(server.studies.parent.rglob("*"))
        if not any(path == one or one in path.parents for one in behind) and path.suffix != ".part"
    ]


@pytest.mark.parametrize("image", ["../x", "a/b", ".hidden", "x\\y"])
def test_an_uploaded_image_cannot_leave_the_studies(server: Any, image: str) -> None:
    content = (server.studies / "case0.nii.gz").read_bytes()
    with server.client() as client:
        answer = client.put(
            "/datastore/image", params={"image": image}, files={"file": ("x.nii.gz", content)}
        )
    assert answer.status_code == 422
    assert not (server.studies.parent / "x.nii.gz").exists()


def test_a_new_image_can_be_uploaded_once(server: Any) -> None:
    content = (server.studies / "case0.nii.gz").read_bytes()
    with server.client() as client:
        send = {"params": {"image": "uploaded.v1"}, "files": {"file": ("x.nii.gz", content)}}
        assert client.put("/datastore/image", **send).json() == {"image": "uploaded.v1"}
        assert client.put("/datastore/image", **send).status_code == 422
        assert server.infer(CLICK, image="uploaded.v1", output="json").status_code == 200
        assert client.delete("/datastore/image?id=uploaded.v1").status_code == 200
    assert server.infer(CLICK, image="uploaded.v1").status_code == 404


def test_two_annotators_get_two_cases_and_the_label_ends_the_lease(
    make_server: Callable[..., Any], label_of: LabelOf
) -> None:
    server = make_server(cases=3, auto_train="false")  # which case is labelled depends on how far scoring is

    def ask(client: str, strategy: str = "medsa") -> str:
        return server.post(f"/activelearning/{strategy}", {"client_id": client}).json()["id"]

    first, second = ask("ann"), ask("bob")
    assert first != second
    assert (ask("ann"), ask("bob", "random"), ask("ann", "first")) == (first, second, first)
    assert server.save(first, label_of(server.studies, first)).status_code == 200
    third = ask("ann")
    assert third not in (first, second)


def test_who_works_on_a_case_keeps_it(make_server: Callable[..., Any]) -> None:
    server = make_server(cases=2, auto_train="false")  # nobody has clicked there in the last minute
    case = server.post("/activelearning/medsa", {"client_id": "ann"}).json()["id"]

    def until() -> float:
        return json.loads((server.state / "leases.json").read_text())["leases"][case]["until"]

    offered = until()
    assert server.infer(CLICK, image=case, output="json").status_code == 200
    assert until() > offered


def test_a_file_that_went_without_a_word_is_not_offered(make_server: Callable[..., Any]) -> None:
    server = make_server(cases=3, auto_train="false")
    first = server.post("/activelearning/first", {"client_id": "ann"}).json()["id"]
    next(iter(server.studies.glob(f"{first}.*"))).unlink()
    second = server.post("/activelearning/first", {"client_id": "ann"}).json()["id"]
    assert second != first
    others = {server.post("/activelearning/first", {"client_id": f"{n}"}).json().get("id") for n in range(2)}
    assert len({*others, second}) == 3
    answer = server.post("/activelearning/first", {"client_id": "late"}).json()
    assert answer == {"message": "No unlabelled case is free: of 3, 3 are offered to others."}


def test_as_ohif_asks_for_the_next_case(server: Any) -> None:
    offered = server.post("/activelearning/random").json()
    assert offered["id"]
    assert Path(offered["path"]).is_file()
    assert server.post("/activelearning/nope").status_code == 404


def test_every_saved_label_is_kept(server: Any, label_of: LabelOf) -> None:
    label = label_of(server.studies, "case4")
    for version, client in enumerate(("ann", "bob"), 1):
        params = {"client_id": client, "label_info": [{"name": "object", "idx": 1}]}
        saved = server.save("case4", label, params).json()
        assert saved == {"image": "case4", "label": "case4", "version": version, "others": [], "pacs": None}
    history = server.studies / ".medsa" / "history" / "case4"
    records = [json.loads(path.read_text()) for path in sorted(history.glob("*.json"))]
    assert [(record["version"], record["author"]) for record in records] == [(1, "ann"), (2, "bob")]
    assert all(record["adapter_version"] == 0 for record in records)
    assert len(list(history.glob("*.nii.gz"))) == 2
    fetched = server.get("/datastore/label", label="case4", tag="final")
    assert fetched.content == (history / "0002.nii.gz").read_bytes()
    assert server.get("/datastore/label", label="case4", tag="original").status_code == 404


def test_a_label_that_does_not_fit_is_refused_and_nothing_stored(server: Any, tmp_path: Path) -> None:
    image = nibabel.load(server.studies / "case5.nii.gz")
    shifted = image.affine.copy()
    shifted[0, 3] += 1
    files = {
        "shape": nibabel.Nifti1Image(np.zeros((40, 36, 19), np.uint8), image.affine),
        "affine": nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), shifted),
        "value 7": nibabel.Nifti1Image(np.full(image.shape, 7, np.uint8), image.affine),
    }
    for named, label in files.items():
        nibabel.save(label, tmp_path / "label.nii.gz")
        answer = server.save("case5", tmp_path / "label.nii.gz")
        assert answer.status_code == 422
        assert named in answer.json()["detail"]
    assert not (server.studies / "labels" / "final" / "case5.nii.gz").exists()
    assert not list((server.studies / ".medsa" / "history").glob("case5/*"))
    assert server.save("nope", tmp_path / "label.nii.gz").status_code == 404


def test_raw_voxels_and_a_viewers_own_numbers_are_understood(server: Any, tmp_path: Path) -> None:
    voxels = np.zeros((40, 36, 20), np.uint8)
    voxels[5:9, 10:20, 3] = 4
    (tmp_path / "label.bin").write_bytes(voxels.tobytes(order="F"))
    params = {"label_info": [{"name": "unused", "idx": 1}, {"name": "object", "idx": 4}]}
    assert server.save("nrrdcase", tmp_path / "label.bin", params).status_code == 200
    stored = nibabel.load(server.studies / "labels" / "final" / "nrrdcase.nii.gz")
    assert np.array_equal(np.asarray(stored.dataobj), voxels // 4)


def test_unknown_tasks_are_named(server: Any) -> None:
    assert server.post("/train/nope").status_code == 404
    assert server.post("/scoring/nope").status_code == 404
    assert server.post("/batch/infer/medsa").status_code == 422
    assert server.post("/wsi_infer/medsa").status_code == 404


def test_the_dataset_can_be_fetched(server: Any, label_of: LabelOf) -> None:
    assert server.save("case0", label_of(server.studies, "case0")).status_code == 200
    archive = server.get("/datastore/dataset")
    assert archive.status_code == 200
    assert archive.content[:2] == b"PK"


def test_the_interface_is_described(server: Any) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/infer/{model}", "/datastore/label", "/medsa/status", "/info/"} <= set(paths)
