"""One inference request: find the task and the image, and run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib.errors import InputError, NotFoundError

ORIGINAL = "original"
InferCall = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


def answer(tasks: Mapping[str, InferCall], store: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """MONAI Label's result of an inference: {"label", "tag", "file", "params"}.

    `request["image"]` is an image id of `store`, or a Path, which only the server itself can put there.
    Raises NotFoundError for an unknown model or image, InputError for MONAI Label's `save_label`, which would save a
    label without the right to, and what the task raises.
    """
    model, image = request.get("model"), request.get("image")
    if model not in tasks:
        raise NotFoundError("model", model, ", ".join(tasks))
    path = image if isinstance(image, Path) else store.image_path(image)
    if request.get("save_label"):
        raise InputError("save_label", request["save_label"], "false; save with PUT /datastore/label")
    file, params = tasks[model]({**request, "image": path})
    return {"label": file, "tag": ORIGINAL, "file": file, "params": params}
