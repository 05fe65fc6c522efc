"""What OHIF and 3D Slicer send for every type of task, replayed byte by byte, and what must be refused.

tests/app/requests holds the requests: path, query, boundary of the multipart body, `params`, and of a label map its
name and what is painted in it.
"""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nibabel
import nrrd
import numpy as np
import pytest
from requests_toolbelt import MultipartDecoder

from lib.volume import Volume, load_volume, save_mask

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]

REQUESTS = sorted((Path(__file__).parent / "requests").glob("*.json"))
SHAPE = (40, 36, 20)
STAGES = {"load", "wait", "encode", "decode", "write", "total"}
CLICK = {"foreground": [[20, 18, 10]], "background": [[2, 2, 10]], "label": "liver"}


@pytest.fixture(scope="module")
def untrained(make_server: Callable[..., Any]) -> tuple[Any, httpx.Response]:
    """A server of three labels, and what it says without clicks before anything is trained."""
    server = make_server(cases=4, task="demo", auto_train="false")
    return server, server.infer({}, model="medsa_auto", image="case0")


@pytest.fixture(scope="module")
def server(untrained: tuple[Any, httpx.Response], publish_adapter: Callable[..., None]) -> Any:
    """The same server with an adapter that was trained on two of the labels."""
    published = {"champion": 0, "trained_labels": ["liver", "kidney"]}
    publish_adapter(untrained[0], {"liver": 1, "spleen": 2, "kidney": 3}, published)
    return untrained[0]


def body_of(recorded: dict[str, Any], label: bytes) -> bytes:
    """The multipart body: the viewers' own encoders give neither length nor type of a text field."""
    mark = b"--" + recorded["boundary"].encode()
    params = json.dumps(recorded["params"]).encode()
    parts = [mark, b'Content-Disposition: form-data; name="params"', b"", params]
    if file := recorded.get("file"):
        head = f'Content-Disposition: form-data; name="{file["field"]}"; filename="{file["name"]}"'
        parts += [mark, head.encode(), f"Content-Type: {file['type']}".encode(), b"", label]
    return b"\r\n".join([*parts, mark + b"--", b""])


def painted(recorded: dict[str, Any], like: Path, folder: Path) -> bytes:
    """The label map of a recorded request, as a file on the grid of the image `like`."""
    voxels = np.zeros(SHAPE, np.uint8)
    for box in recorded["file"]["painted"]:
        window = tuple(slice(*pair) for pair in zip(box["start_ijk"], box["stop_ijk"], strict=True))
        voxels[window] = box["value"]
    save_mask(voxels, load_volume(like), folder / "label.nii.gz")
    return (folder / "label.nii.gz").read_bytes()


def replay(server: Any, recorded: dict[str, Any], folder: Path) -> httpx.Response:
    query = dict(recorded["query"])
    label = painted(recorded, server.studies / "case1.nii.gz", folder) if "file" in recorded else b""
    with server.client() as client:
        if "session_id" in query:
            image = (server.studies / "case1.nii.gz").read_bytes()
            query["session_id"] = client.put("/session/", files={"files": ("MRHead.nii.gz", image)}).json()[
                "session_id"
            ]
        return client.request(
            recorded["method"],
            recorded["path"],
            params=query,
            content=body_of(recorded, label),
            headers={"Content-Type": f"multipart/form-data; boundary={recorded['boundary']}"},
        )


def ohif_answer(answer: httpx.Response) -> tuple[np.ndarray, dict[str, Any]]:
    assert answer.headers["content-type"] == "application/octet-stream"
    stream = io.BytesIO(answer.content)
    header = nrrd.read_header(stream)
    assert (header["type"], header["encoding"]) == ("uint8", "raw")
    return nrrd.read_data(header, stream, index_order="F"), {}


def slicer_answer(answer: httpx.Response) -> tuple[np.ndarray, dict[str, Any]]:
    assert answer.headers["content-type"].startswith("multipart/form-data")
    params, image = MultipartDecoder(answer.content, answer.headers["content-type"]).parts
    assert b'name="params"' in params.headers[b"Content-Disposition"]
    assert b'name="image"' in image.headers[b"Content-Disposition"]
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(image.content))
    return np.asarray(mask.dataobj), json.loads(params.content)


def test_all_are_there() -> None:
    assert len(REQUESTS) == 12


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_recorded_request_is_answered(server: Any, tmp_path: Path, path: Path) -> None:
    recorded = json.loads(path.read_text())
    expected = recorded["expected"]
    answer = replay(server, recorded, tmp_path)
    assert answer.status_code == 200, answer.text
    read = ohif_answer if recorded["viewer"] == "OHIF" else slicer_answer
    mask, params = read(answer)
    assert (mask.shape, mask.dtype) == (SHAPE, np.uint8)
    assert set(np.unique(mask)) <= set(expected["values"])
    assert all(mask[tuple(voxel)] == value for voxel, value in expected.get("voxels", []))
    if "only_slice" in expected:
        assert set(np.flatnonzero(mask.any(axis=(0, 1)))) <= {expected["only_slice"]}
    if recorded["viewer"] != "OHIF":
        assert (params["base"], params["version"]) == ("vit_t", 1)
        assert set(params["seconds"]) == STAGES
        assert params | expected.get("params", {}) == params


def test_without_training_there_is_no_automatic_answer(untrained: tuple[Any, httpx.Response]) -> None:
    answer = untrained[1]
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("nothing is trained yet: save labels, and POST /train/medsa")


def good_mask(server: Any) -> bytes:
    """The voxels alone: an NRRD says when it was written."""
    params = {**CLICK, "result_extension": ".nrrd", "result_compress": False}
    answer = server.infer(params, image="case2", output="image")
    assert answer.status_code == 200, answer.text
    return ohif_answer(answer)[0].tobytes()


@pytest.fixture(scope="module")
def before(server: Any) -> bytes:
    """What the good request gives before any bad one."""
    return good_mask(server)


@pytest.mark.parametrize(
    ("model", "params", "named"),
    [
        ("medsa", {}, "foreground: None is not accepted; allowed: at least one point [i, j, k]"),
        ("medsa", {"foreground": [[20, float("nan"), 10]]}, "foreground[0]: [20, nan, 10]"),
        ("medsa", {"foreground": [[20, "18", 10]]}, "foreground[0]: [20, '18', 10]"),
        ("medsa", {"foreground": [[20, 36, 10]]}, "i 0..39, j 0..35, k 0..19"),
        ("medsa", {"roi": [50, 60, 1, 9, 1, 9]}, "roi: [50, 60, 1, 9, 1, 9]"),
        ("medsa", {"roi": [8, 8, 1, 9, 1, 9]}, "a box that has a volume"),
        (
            "medsa",
            {**CLICK, "slice": 40},
            "slice: 40 is not accepted; allowed: a slice along k of the volume: 0..19",
        ),
        (
            "medsa",
            {"foreground": [[1, 1, 1]] * 100_000},
            "'100000 points' is not accepted; allowed: at most 1000",
        ),
        ("medsa", {**CLICK, "label": "heart"}, "allowed: liver, spleen, kidney"),
        ("medsa", {"foreground": [[1, 2, 3]], "background": [[1, 2, 3]]}, "not marked as foreground too"),
        ("medsa_2d", {**CLICK, "slice": 11}, "slice: 11"),
        ("medsa_2d", {**CLICK, "slice": -1}, "0..19"),
        ("medsa_multi", {"liver": [], "spleen": []}, "at least one point [i, j, k] under one of liver"),
        ("medsa_multi", {"liver": [[1, 2, 3]], "spleen": [[1, 2, 3]]}, "not marked as liver too"),
        ("medsa_multi", {"liver": [[1, 2, 3]], "heart": [[4, 5, 6]]}, "points: 'heart'"),
        ("medsa_multi", {"liver": [[1, 1, 1]] * 100_000}, "at most 1000 points"),
        ("medsa_auto", {"label_prompt": ["heart"]}, "label_prompt: 'heart'"),
        ("medsa_scribbles", {}, "a label file that marks voxels"),
    ],
)
def test_a_bad_request_is_named_and_the_next_is_answered_as_before(
    server: Any, before: bytes, model: str, params: dict[str, Any], named: str
) -> None:
    answer = server.infer(params, model=model, image="case2")
    assert answer.status_code == 422
    assert named in answer.json()["detail"]
    assert good_mask(server) == before


@pytest.mark.parametrize(
    ("shape", "shift", "values", "named"),
    [
        ((40, 36, 19), 0, 1, "shape (40, 36, 19) differs from its image's (40, 36, 20)"),
        (SHAPE, 1, 1, "affine differs from its image's by 1 mm"),
        (SHAPE, 0, 0, "a label file that marks voxels"),
    ],
)
def test_a_bad_label_file_is_named_and_the_next_request_is_answered_as_before(
    server: Any, before: bytes, tmp_path: Path, shape: Any, shift: float, values: int, named: str
) -> None:
    affine = load_volume(server.studies / "case2.nii.gz").affine.copy()
    affine[0, 3] += shift
    voxels = np.full(shape, values, np.uint8)
    save_mask(voxels, Volume(voxels, affine), tmp_path / "label.nii.gz")
    files = {"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())}
    with server.client() as client:
        answer = client.post("/infer/medsa?image=case2", files=files)
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["detail"]
    assert good_mask(server) == before


@pytest.mark.parametrize(
    ("voxels", "named"),
    [
        (np.zeros((12, 10, 8, 2), np.int16), "shape (12, 10, 8, 2) is not a volume"),
        (np.zeros((0,), np.int16), "allowed: at least one voxel"),
        (b"GIF89a", "cannot be read"),
    ],
)
def test_a_bad_image_is_named_and_the_next_request_is_answered_as_before(
    server: Any, before: bytes, voxels: np.ndarray | bytes, named: str
) -> None:
    content = voxels if isinstance(voxels, bytes) else nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()
    files = {"params": (None, json.dumps(CLICK)), "file": ("a.nii", content)}
    with server.client() as client:
        answer = client.post("/infer/medsa", files=files)
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["detail"]
    assert good_mask(server) == before


def test_an_unknown_session_is_named_and_the_next_request_is_answered_as_before(
    server: Any, before: bytes
) -> None:
    answer = server.infer(CLICK, session_id="nobody")
    assert answer.status_code == 404, answer.text
    assert "'nobody'" in answer.json()["detail"]
    assert good_mask(server) == before


def test_a_mask_is_a_prompt(server: Any, label_of: Callable[[Path, str], Path]) -> None:
    label = label_of(server.studies, "case2").read_bytes()
    with server.client() as client:
        answer = client.post(
            "/infer/medsa?image=case2&output=json",
            files={"label": ("mask.nii.gz", label), "params": (None, json.dumps({"label": "kidney"}))},
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["prompts"]["mask"]["voxels"] > 1000


def test_the_last_prompts_are_written_with_the_label(
    server: Any, label_of: Callable[[Path, str], Path]
) -> None:
    for number in (17, 18):
        params = {"foreground": [[20, number, 10]], "label": "liver", "client_id": "ann"}
        assert server.infer(params, image="case3").status_code == 200
    assert server.infer({"kidney": [[3, 3, 3]]}, model="medsa_multi", image="case3").status_code == 200
    assert server.infer({"foreground": [[1, 2]]}, image="case3").status_code == 422
    assert server.save("case3", label_of(server.studies, "case3")).status_code == 200
    record = json.loads((server.studies / ".medsa" / "history" / "case3" / "0001.json").read_text())
    liver, kidney = record["prompts"]["liver"], record["prompts"]["kidney"]
    assert liver["prompts"]["positive_ijk"] == [[20, 18, 10]]
    assert (liver["task"], liver["author"], liver["adapter_version"]) == ("medsa", "ann", 1)
    assert (kidney["task"], kidney["prompts"]["positive_ijk"]) == ("medsa_multi", [[3, 3, 3]])
    assert list((server.state / "last_prompts").glob("*.json")) != [], "those of other cases stay"
    assert server.save("case3", label_of(server.studies, "case3")).status_code == 200
    record = json.loads((server.studies / ".medsa" / "history" / "case3" / "0002.json").read_text())
    assert record["prompts"] == {}
