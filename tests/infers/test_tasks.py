"""The inference tasks, without a server."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.embeddings import EmbeddingCache
from lib.errors import InputError, VolumeError
from lib.infers.medsa_infer import MedsaInfer, parse_format
from lib.infers.serving import OpenBase, ServingModel, View
from lib.infers.volumes import VolumeCache
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


def run(
    serving: ServingModel, request: dict[str, Any], dimension: int = 3
) -> tuple[np.ndarray, dict[str, Any], str]:
    file, params = MedsaInfer(serving, VolumeCache(), {"object": 1}, dimension)(request)
    path = Path(file)
    mask = load_volume(path).array
    path.unlink()
    return mask, params, path.name


def test_a_click_is_answered_on_the_images_grid(serving: ServingModel, image: Path) -> None:
    mask, params, name = run(serving, {"image": image, "foreground": [[13, 8, 6]], "label": "object"})
    assert mask.shape == (24, 20, 12)
    assert name.endswith(".nii.gz")
    assert (params["base"], params["version"], params["label"]) == ("tiny", 0, "object")
    assert params["prompts"]["positive_ijk"] == [[13, 8, 6]]
    assert 6 in params["slices"]
    assert set(params["quality"]) == {str(index) for index in params["slices"]}


def test_2d_answers_one_slice(serving: ServingModel, image: Path) -> None:
    _, params, _ = run(serving, {"image": image, "foreground": [[13, 8, 6]]}, dimension=2)
    assert params["slices"] == [6]


def test_the_format_that_was_asked_for(serving: ServingModel, image: Path) -> None:
    wanted = {"result_extension": ".nrrd", "result_compress": False, "result_dtype": "uint8"}
    _, _, name = run(serving, {"image": image, "foreground": [[13, 8, 6]], **wanted})
    assert name.endswith(".nrrd")


def test_info_is_what_viewers_read(serving: ServingModel) -> None:
    info = MedsaInfer(serving, VolumeCache(), {"object": 1}, 3).info()
    assert (info["type"], info["dimension"], info["labels"], info["config"]) == (
        "deepgrow",
        3,
        {"object": 1},
        {},
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
        run(serving, {"image": image})
    with pytest.raises(VolumeError):
        run(serving, {"image": tmp_path / "gone.nii.gz", "foreground": [[1, 1, 1]]})
    assert list(folder.iterdir()) == []
