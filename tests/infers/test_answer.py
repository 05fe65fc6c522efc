"""Finding the task and the image of a request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib.errors import InputError, LabelError, NotFoundError
from lib.infers.answer import answer


class Store:
    """A datastore with the one image `a`; it notes what is saved."""

    def __init__(self) -> None:
        self.saved: list[tuple[Any, ...]] = []
        self.refuse = False

    def image_path(self, image_id: object) -> Path:
        if image_id != "a":
            raise NotFoundError("image", image_id, "a")
        return Path("/studies/a.nii.gz")

    def save_label(self, *arguments: Any) -> str:
        if self.refuse:
            raise LabelError("refused")
        self.saved.append(arguments)
        return str(arguments[0])


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


def test_a_mask_is_saved_under_the_label_it_was_asked_for(tasks: dict[str, Any]) -> None:
    store = Store()
    request = {"model": "medsa", "image": "a", "save_label": True, "label": "object"}
    assert answer(tasks, store, request)["label"] == "a"
    ((image_id, _, tag, info),) = store.saved
    assert (image_id, tag, info["label_info"]) == ("a", "original", [{"name": "object", "idx": 1}])


def test_a_mask_of_no_label_is_not_saved(tasks: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label"):
        answer(tasks, Store(), {"model": "medsa", "image": "a", "save_label": True})
    assert not (tmp_path / "mask.nii.gz").exists()


def test_a_mask_that_cannot_be_saved_leaves_no_file(tasks: dict[str, Any], tmp_path: Path) -> None:
    store = Store()
    store.refuse = True
    with pytest.raises(LabelError):
        answer(tasks, store, {"model": "medsa", "image": "a", "save_label": True, "label": "object"})
    assert not (tmp_path / "mask.nii.gz").exists()
