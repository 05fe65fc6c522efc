"""The inference tasks, without a server."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.embeddings import EmbeddingCache
from lib.errors import InputError, UntrainedError, VolumeError
from lib.infers.answer_format import parse_format
from lib.infers.deepedit import MedsaDeepedit
from lib.infers.deepgrow import MedsaDeepgrow, MedsaDeepgrow2d, MedsaScribbles
from lib.infers.segmentation import MedsaSegmentation
from lib.infers.serving import OpenBase, ServingModel, View
from lib.infers.task import MedsaTask
from lib.infers.volumes import VolumeCache
from lib.model.adapter_io import AdapterConfig, save_adapter
from lib.model.medsa import MedSA
from lib.settings import IntensitySettings
from lib.training.releases import Releases
from lib.volume import load_volume, save_mask


@pytest.fixture
def serving(tiny_model: MedSA, tmp_path: Path) -> ServingModel:
    base = OpenBase("tiny", "a test", "0" * 64, tiny_model)
    view = View(IntensitySettings(), "auto", "cpu")
    return ServingModel(
        lambda: base, Releases(tmp_path / "state"), {"object": 1}, view, EmbeddingCache(1 << 24)
    )


@pytest.fixture
def image(tmp_path: Path, ellipsoid_case: Any) -> Path:
    path = tmp_path / "a.nii.gz"
    save_mask(ellipsoid_case.label * 200, ellipsoid_case.volume, path)
    return path


def run(task: MedsaTask, request: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any], str]:
    file, params = task(request)
    path = Path(file)
    mask = load_volume(path).array
    path.unlink()
    return mask, params, path.name


def deepgrow(serving: ServingModel, request: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any], str]:
    return run(MedsaDeepgrow(serving, VolumeCache(), {"object": 1}), request)


def test_a_click_is_answered_on_the_images_grid(serving: ServingModel, image: Path) -> None:
    mask, params, name = deepgrow(serving, {"image": image, "foreground": [[13, 8, 6]], "label": "object"})
    assert mask.shape == (24, 20, 12)
    assert name.endswith(".nii.gz")
    assert (params["base"], params["version"], params["label"]) == ("tiny", 0, "object")
    assert params["prompts"]["positive_ijk"] == [[13, 8, 6]]
    assert 6 in params["slices"]
    assert set(params["quality"]) == {str(index) for index in params["slices"]}
    assert set(params["seconds"]) == {"load", "wait", "encode", "decode", "write", "total"}
    assert params["label_names"] == {"object": 1}


def test_2d_answers_one_slice(serving: ServingModel, image: Path) -> None:
    task = MedsaDeepgrow2d(serving, VolumeCache(), {"object": 1})
    assert run(task, {"image": image, "foreground": [[13, 8, 6]]})[1]["slices"] == [6]
    request = {
        "image": image,
        "foreground": [[13, 8, 6], [13, 8, 4]],
        "slice": 4,
        "roi": [4, 20, 3, 15, 2, 9],
    }
    mask, params, _ = run(task, request)
    assert params["slices"] == [4]
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) <= {4}
    assert params["prompts"]["boxes"] == [{"start_ijk": [4, 3, 4], "stop_ijk": [21, 16, 5]}]


def test_the_format_that_was_asked_for(serving: ServingModel, image: Path) -> None:
    wanted = {"result_extension": ".nrrd", "result_compress": False, "result_dtype": "uint8"}
    assert deepgrow(serving, {"image": image, "foreground": [[13, 8, 6]], **wanted})[2].endswith(".nrrd")


@pytest.mark.parametrize(
    ("task", "kind", "dimension"),
    [
        (MedsaDeepgrow, "deepgrow", 3),
        (MedsaDeepgrow2d, "deepgrow", 2),
        (MedsaDeepedit, "deepedit", 3),
        (MedsaScribbles, "scribbles", 3),
        (lambda *parts: MedsaSegmentation(*parts, lambda version: ["object"]), "segmentation", 3),
    ],
)
def test_info_is_what_viewers_read(serving: ServingModel, task: Any, kind: str, dimension: int) -> None:
    info = task(serving, VolumeCache(), {"object": 1}).info()
    assert (info["type"], info["dimension"], info["labels"], info["config"]) == (
        kind,
        dimension,
        {"object": 1},
        {},
    )


def test_a_mask_is_refined(serving: ServingModel, image: Path, ellipsoid_case: Any, tmp_path: Path) -> None:
    file = tmp_path / "label.nrrd"
    save_mask(ellipsoid_case.label, ellipsoid_case.volume, file)
    request = {"image": image, "foreground": [[13, 8, 6]], "label_file": file}
    described = deepgrow(serving, request)[1]["prompts"]["mask"]
    assert described["voxels"] == int(ellipsoid_case.label.sum())


def test_strokes_become_clicks(
    serving: ServingModel, image: Path, ellipsoid_case: Any, tmp_path: Path
) -> None:
    strokes = np.zeros((24, 20, 12), np.uint8)
    strokes[10:16, 8, 6] = 3
    strokes[1, 2:10, 6] = 2
    file = tmp_path / "label.nii.gz"
    save_mask(strokes, ellipsoid_case.volume, file)
    task = MedsaScribbles(serving, VolumeCache(), {"object": 1})
    request = {"image": image, "label_file": file, "roi": [], "selected_label_name": "object"}
    mask, params, _ = run(task, request)
    assert params["label"] == "object"
    points = params["prompts"]["positive_ijk"]
    assert sorted(points) == [[i, 8, 6] for i in range(10, 16)]
    assert all(mask[tuple(point)] == 1 for point in points)
    with pytest.raises(InputError, match="selected_label_name: 'mine' is not accepted; allowed: object"):
        task({**request, "selected_label_name": "mine"})


def test_strokes_of_background_alone_are_refused(
    serving: ServingModel, image: Path, ellipsoid_case: Any, tmp_path: Path
) -> None:
    strokes = np.zeros((24, 20, 12), np.uint8)
    strokes[1, 2:10, 6] = 2
    save_mask(strokes, ellipsoid_case.volume, tmp_path / "label.nii.gz")
    with pytest.raises(InputError, match="background"):
        MedsaScribbles(serving, VolumeCache(), {"object": 1})(
            {"image": image, "label_file": tmp_path / "label.nii.gz"}
        )


TWO = {"left": 3, "right": 7}


@pytest.fixture
def two_labels(tiny_model: MedSA, tmp_path: Path) -> ServingModel:
    model = MedSA(tiny_model.sam, tiny_model.spec, tiny_model.dims, tuple(TWO)).eval()
    base = OpenBase("tiny", "a test", "0" * 64, model)
    view = View(IntensitySettings(), "auto", "cpu")
    return ServingModel(lambda: base, Releases(tmp_path / "state"), TWO, view, EmbeddingCache(1 << 24))


def test_every_clicked_label_has_its_own_value(two_labels: ServingModel, image: Path) -> None:
    task = MedsaDeepedit(two_labels, VolumeCache(), TWO)
    request = {"image": image, "left": [[8, 8, 6]], "right": [[18, 8, 6]], "background": [[1, 1, 6]]}
    mask, params, _ = run(task, request)
    assert (mask[8, 8, 6], mask[18, 8, 6], mask[1, 1, 6]) == (3, 7, 0)
    assert set(np.unique(mask)) == {0, 3, 7}
    assert params["label_names"] == TWO
    assert params["labels"]["left"]["prompts"]["negative_ijk"] == [[18, 8, 6], [1, 1, 6]]
    assert 6 in params["labels"]["right"]["slices"]
    assert params["labels"]["right"]["quality"]


def test_only_what_was_clicked_is_answered(two_labels: ServingModel, image: Path) -> None:
    task = MedsaDeepedit(two_labels, VolumeCache(), TWO)
    mask, params, _ = run(task, {"image": image, "right": [[18, 8, 6]], "left": []})
    assert set(np.unique(mask)) == {0, 7}
    assert params["label_names"] == TWO
    assert list(params["labels"]) == ["right"]


def publish(serving: ServingModel, tmp_path: Path) -> None:
    model = serving.current().predictor.model
    config = AdapterConfig("tiny", "0" * 64, vars(model.dims), TWO, {}, "test")
    Releases(tmp_path / "state").publish(lambda folder: save_adapter(folder, model, config, "card"), {})


def test_with_nothing_trained_that_is_said(two_labels: ServingModel, image: Path) -> None:
    task = MedsaSegmentation(two_labels, VolumeCache(), TWO, lambda version: list(TWO))
    with pytest.raises(UntrainedError, match="nothing is trained yet: save labels") as raised:
        task({"image": image})
    assert raised.value.http_status == 409


def test_every_trained_label_is_answered_and_the_others_are_named(
    two_labels: ServingModel, image: Path, tmp_path: Path
) -> None:
    publish(two_labels, tmp_path)
    asked: list[int] = []
    task = MedsaSegmentation(
        two_labels, VolumeCache(), TWO, lambda version: asked.append(version) or ["right"]
    )
    mask, params, _ = run(task, {"image": image})
    assert asked == [1]
    assert (params["version"], list(params["labels"])) == (1, ["right"])
    assert params["left_out"] == {"left": "in none of the labels that were trained on"}
    assert set(np.unique(mask)) <= {0, 7}
    with pytest.raises(UntrainedError, match="version 1 was trained on right only, not on left"):
        task({"image": image, "label_prompt": [3]})


def test_labels_that_were_not_asked_for_are_left_out(
    two_labels: ServingModel, image: Path, tmp_path: Path
) -> None:
    publish(two_labels, tmp_path)
    task = MedsaSegmentation(two_labels, VolumeCache(), TWO, lambda version: list(TWO))
    assert list(run(task, {"image": image})[1]["labels"]) == ["left", "right"]
    _, params, _ = run(task, {"image": image, "labels": ["left"]})
    assert (list(params["labels"]), params["left_out"]) == (["left"], {"right": "not asked for"})


@pytest.mark.parametrize(
    "task", [MedsaDeepedit, lambda *parts: MedsaSegmentation(*parts, lambda version: TWO)]
)
def test_a_label_file_that_nobody_reads_is_refused(
    two_labels: ServingModel, image: Path, tmp_path: Path, task: Any
) -> None:
    with pytest.raises(InputError, match="no label file for this model"):
        task(two_labels, VolumeCache(), TWO)(
            {"image": image, "left": [[1, 1, 1]], "label_file": tmp_path / "l.bin"}
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("result_extension", ".stl"),
        ("result_extension", 7),
        ("result_dtype", "int64"),
        ("result_compress", "no"),
    ],
)
def test_another_format_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key):
        parse_format({key: value})


def test_what_viewers_leave_out_has_a_default() -> None:
    assert parse_format({"result_extension": None, "result_dtype": None}) == parse_format({})
    assert parse_format({}).extension == ".nii.gz"


def test_a_bad_request_leaves_no_file(
    serving: ServingModel, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(InputError, match="foreground"):
        deepgrow(serving, {"image": image})
    with pytest.raises(VolumeError):
        deepgrow(serving, {"image": tmp_path / "gone.nii.gz", "foreground": [[1, 1, 1]]})
    assert list(folder.iterdir()) == []
