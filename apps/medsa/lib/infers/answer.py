"""One inference request: find the task and the image, run, and save the mask where that is asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib.errors import InputError, NotFoundError

ORIGINAL = "original"
InferCall = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


def answer(tasks: Mapping[str, InferCall], store: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """MONAI Label's result of an inference: {"label", "tag", "file", "params"}.

    `request["image"]` is an image id of `store`, or a Path, which only the server itself can put there.
    Raises NotFoundError for an unknown model or image, and what the task raises.
    """
    model, image = request.get("model"), request.get("image")
    if model not in tasks:
        raise NotFoundError("model", model, ", ".join(tasks))
    path = image if isinstance(image, Path) else store.image_path(image)
    saves = bool(request.get("save_label")) and not isinstance(image, Path)
    if saves and not request.get("label"):
        raise InputError("label", request.get("label"), "a label's name when save_label is set")
    file, params = tasks[model]({**request, "image": path})
    label = _save(store, str(image), Path(file), request, params) if saves else file
    return {"label": label, "tag": ORIGINAL, "file": file, "params": params}


def _save(
    store: Any, image_id: str, file: Path, request: Mapping[str, Any], params: Mapping[str, Any]
) -> str:
    """Keeps the mask, whose 1 stands for the label that was asked for, under the request's tag."""
    info = {
        "model": request["model"],
        "params": dict(params),
        "label_info": [{"name": params["label"], "idx": 1}],
    }
    try:
        return store.save_label(image_id, str(file), request.get("label_tag") or ORIGINAL, info)
    except BaseException:
        file.unlink()
        raise
