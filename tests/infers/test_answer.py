"""Finding the task and the image of a request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib.errors import InputError, NotFoundError
from lib.infers.answer import answer


class Store:
    """A datastore with the one image `a`."""

    def image_path(self, image_id: object) -> Path:
        if image_id != "a":
            raise NotFoundError("image", image_id, "a")
        return Path("/studies/a.nii.gz")


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Any]:
    def task(request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        file = tmp_path / "mask.nii.gz"
        file.write_bytes(b"mask")
        return str(file), {"image": str(request["image"]), "label": request.get("label")}

    return {"medsa": task}


def test_an_id_becomes_the_images_file(tasks: dict[str, Any]) -> None:
    result = answer(tasks, Store(), {"model": "medsa", "image": "a"})
    assert result["params"]["image"] == "/studies/a.nii.gz"
    assert result["file"] == result["label"]


def test_only_the_server_can_name_a_file(tasks: dict[str, Any]) -> None:
    path = Path("/tmp/upload.nii.gz")
    assert answer(tasks, Store(), {"model": "medsa", "image": path})["params"]["image"] == str(path)
    with pytest.raises(NotFoundError, match="image"):
        answer(tasks, Store(), {"model": "medsa", "image": str(path)})


@pytest.mark.parametrize("model", ["nope", None, ""])
def test_an_unknown_model_is_named(tasks: dict[str, Any], model: object) -> None:
    with pytest.raises(NotFoundError, match="allowed: medsa"):
        answer(tasks, Store(), {"model": model, "image": "a"})


@pytest.mark.parametrize("image", ["a", Path("/tmp/upload.nii.gz")])
def test_an_inference_saves_no_label(tasks: dict[str, Any], tmp_path: Path, image: object) -> None:
    with pytest.raises(InputError, match="save_label: True is not accepted; allowed: false; save with PUT"):
        answer(tasks, Store(), {"model": "medsa", "image": image, "save_label": True, "label": "object"})
    assert not (tmp_path / "mask.nii.gz").exists()
    assert answer(tasks, Store(), {"model": "medsa", "image": image, "save_label": False})["file"]
