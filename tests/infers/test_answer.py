"""Finding the task and the image of a request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib.datastore.lastprompts import LastPrompts
from lib.errors import BusyError, InputError, NotFoundError
from lib.infers.answer import MEMORY_SECONDS, answer, with_memory
from lib.turns import Asker


class Store:
    """A datastore with the one image `a`."""

    def __init__(self, folder: Path) -> None:
        self.last_prompts = LastPrompts(folder)

    def image_path(self, image_id: object) -> Path:
        if image_id != "a":
            raise NotFoundError("image", image_id, "a")
        return Path("/studies/a.nii.gz")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "prompts")


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Any]:
    def task(request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        file = tmp_path / "mask.nii.gz"
        file.write_bytes(b"mask")
        if request.get("fails"):
            raise InputError("fails", True, "false")
        prompts = {"positive_ijk": request.get("foreground")}
        said = {"image": str(request["image"]), "label": request.get("label"), "prompts": prompts}
        if "labels" in request:
            said["labels"] = {name: {"prompts": prompts, "slices": [1]} for name in request["labels"]}
        else:
            said["slices"] = request.get("found", [])
        seconds = {"encode": request.get("encoded", 0.0)}
        return str(file), {**said, "base": "tiny", "version": 3, "seconds": seconds}

    return {"medsa": task}


def test_an_id_becomes_the_images_file(tasks: dict[str, Any], store: Store) -> None:
    result = answer(tasks, store, {"model": "medsa", "image": "a"})
    assert result["params"]["image"] == "/studies/a.nii.gz"
    assert result["file"] == result["label"]


def test_a_click_waits_for_memory_that_training_gives_back() -> None:
    """Out of memory in the middle of a training's step: it makes room before its next one."""
    now, tries = [0.0], []

    def work() -> str:
        tries.append(now[0])
        if len(tries) < 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return "mask"

    def sleep(seconds: float) -> None:
        now[0] += seconds

    assert with_memory(work, None, lambda: now[0], sleep) == "mask"
    assert len(tries) == 3


@pytest.mark.parametrize(("deadline", "seconds"), [(None, MEMORY_SECONDS), (2.0, 2.0)])
def test_it_does_not_wait_for_ever(deadline: float | None, seconds: float) -> None:
    now = [0.0]

    def work() -> str:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    def sleep(step: float) -> None:
        now[0] += step

    with pytest.raises(BusyError, match="memory is full") as refused:
        with_memory(work, Asker("ann", deadline=deadline), lambda: now[0], sleep)
    assert refused.value.http_status == 503
    assert seconds <= now[0] < seconds + 1


def test_another_error_is_told_at_once(tasks: dict[str, Any], store: Store) -> None:
    def broken(request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        answer({"medsa": broken}, store, {"model": "medsa", "image": "a"})


def test_only_the_server_can_name_a_file(tasks: dict[str, Any], store: Store) -> None:
    path = Path("/tmp/upload.nii.gz")
    assert answer(tasks, store, {"model": "medsa", "image": path})["params"]["image"] == str(path)
    with pytest.raises(NotFoundError, match="image"):
        answer(tasks, store, {"model": "medsa", "image": str(path)})


@pytest.mark.parametrize("model", ["nope", None, ""])
def test_an_unknown_model_is_named(tasks: dict[str, Any], store: Store, model: object) -> None:
    with pytest.raises(NotFoundError, match="allowed: medsa"):
        answer(tasks, store, {"model": model, "image": "a"})


@pytest.mark.parametrize("image", ["a", Path("/tmp/upload.nii.gz")])
def test_an_inference_saves_no_label(
    tasks: dict[str, Any], store: Store, tmp_path: Path, image: object
) -> None:
    with pytest.raises(InputError, match="save_label: True is not accepted; allowed: false; save with PUT"):
        answer(tasks, store, {"model": "medsa", "image": image, "save_label": True, "label": "object"})
    assert not (tmp_path / "mask.nii.gz").exists()
    assert answer(tasks, store, {"model": "medsa", "image": image, "save_label": False})["file"]


CLICK = {"model": "medsa", "image": "a", "foreground": [[1, 2, 3]]}


def test_the_prompts_on_an_image_are_kept_with_their_origin(tasks: dict[str, Any], store: Store) -> None:
    answer(tasks, store, {**CLICK, "label": "liver", "asker": Asker(client="ann"), "client_id": "x"})
    kept = store.last_prompts.of("a")["liver"]
    assert kept.pop("time").startswith("20")
    assert kept == {
        "prompts": {"positive_ijk": [[1, 2, 3]]},
        "task": "medsa",
        "author": "ann",
        "base": "tiny",
        "adapter_version": 3,
    }


def test_without_a_label_they_are_kept_under_no_name(tasks: dict[str, Any], store: Store) -> None:
    answer(tasks, store, {**CLICK, "client_id": "bob"})
    assert store.last_prompts.of("a")[""]["author"] == "bob"


def test_of_several_labels_each_ones_are_kept(tasks: dict[str, Any], store: Store) -> None:
    answer(tasks, store, {**CLICK, "labels": ["liver", "spleen"]})
    kept = store.last_prompts.of("a")
    assert list(kept) == ["liver", "spleen"]
    assert "slices" not in kept["liver"]


def test_those_on_an_upload_and_refused_ones_are_not_kept(tasks: dict[str, Any], store: Store) -> None:
    answer(tasks, store, {**CLICK, "image": Path("/tmp/upload.nii.gz")})
    with pytest.raises(InputError, match="fails"):
        answer(tasks, store, {**CLICK, "fails": True})
    assert store.last_prompts.of("a") == {}
    assert not (store.last_prompts._folder).exists()


def test_prompts_that_cannot_be_kept_do_not_spoil_the_answer(
    tasks: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert answer(tasks, Store(tmp_path / "file" / "prompts"), CLICK)["file"]
    assert "the prompts on a could not be kept" in caplog.text


@pytest.mark.parametrize(
    ("request_", "index", "encoded"),
    [
        ({"found": [4, 5, 6], "encoded": 0.25}, 5, True),
        ({"found": [], "encoded": 0.0}, None, False),
        ({"labels": ["liver", "spleen"]}, 1, False),
        ({"image": Path("/studies/sessions/x.nii.gz"), "found": [7], "uploaded": False}, 7, False),
    ],
)
def test_it_is_told_where_an_image_was_clicked_on(
    tasks: dict[str, Any], store: Store, request_: dict[str, Any], index: int | None, encoded: bool
) -> None:
    told: list[Any] = []
    answer(tasks, store, {**CLICK, **request_}, lambda *said: told.append(said))
    assert told == [(request_.get("image", Path("/studies/a.nii.gz")), index, encoded)]


def test_an_upload_is_gone_after_its_answer_and_so_is_not_told_of(
    tasks: dict[str, Any], store: Store
) -> None:
    told: list[Any] = []
    request = {**CLICK, "image": Path("/tmp/upload.nii.gz"), "uploaded": True}
    assert answer(tasks, store, request, lambda *said: told.append(said))["file"]
    assert told == []
