"""One inference request: find the task and the image, run, and keep what was asked."""

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.errors import InputError, NotFoundError
from lib.turns import Asker

log = logging.getLogger(__name__)

ORIGINAL = "original"
OpenedCall = Callable[[Path, int | None], None]
InferCall = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


def answer(
    tasks: Mapping[str, InferCall], store: Any, request: Mapping[str, Any], opened: OpenedCall | None = None
) -> dict[str, Any]:
    """MONAI Label's result of an inference: {"label", "tag", "file", "params"}.

    `request["image"]` is an image id of `store`, or a Path, which only the server itself can put there. The prompts
    on an image of the store are kept there. `opened` is told an image of the store and the slice in the
    middle of the answer. Raises NotFoundError for an unknown model or image, InputError for MONAI
    Label's `save_label`, which would save a label without the right to, and what the task raises.
    """
    model, image = request.get("model"), request.get("image")
    if model not in tasks:
        raise NotFoundError("model", model, ", ".join(tasks))
    path = image if isinstance(image, Path) else store.image_path(image)
    if request.get("save_label"):
        raise InputError("save_label", request["save_label"], "false; save with PUT /datastore/label")
    file, params = tasks[model]({**request, "image": path})
    if not isinstance(image, Path):
        _keep_prompts(store, str(image), request, params)
        if opened is not None:
            slices = params.get("slices") or [None]
            opened(path, slices[len(slices) // 2])
    return {"label": file, "tag": ORIGINAL, "file": file, "params": params}


def describe_prompts(request: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Label name ("" where none was given) -> the prompts that were answered, by whom and by what."""
    asker = request.get("asker")
    facts = {
        "task": request.get("model"),
        "author": asker.client if isinstance(asker, Asker) else str(request.get("client_id") or "unknown"),
        "base": params.get("base"),
        "adapter_version": params.get("version"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if "labels" in params:
        return {name: {"prompts": said["prompts"], **facts} for name, said in params["labels"].items()}
    return {params.get("label") or "": {"prompts": params.get("prompts"), **facts}}


def _keep_prompts(store: Any, image_id: str, request: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    try:
        store.last_prompts.note(image_id, describe_prompts(request, params))
    except OSError:
        # The mask is there and its user waits; what is lost is where it came from.
        log.exception("the prompts on %s could not be kept", image_id)
