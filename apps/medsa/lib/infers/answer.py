"""One inference request: find the task and the image, run, and keep what was asked."""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from lib.device_memory import free_memory, is_out_of_memory
from lib.errors import BusyError, InputError, NotFoundError
from lib.turns import Asker

log = logging.getLogger(__name__)

ORIGINAL = "original"
# So long a request waits for memory, in such steps: training makes room at its next step.
MEMORY_SECONDS, MEMORY_PAUSE, RETRY_SECONDS = 10.0, 0.3, 5
T = TypeVar("T")
InferCall = Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
# Is told the image, the slice in the middle of the answer, and whether something had to be encoded for it.
ClickedCall = Callable[[Path, int | None, bool], None]


def answer(
    tasks: Mapping[str, InferCall],
    store: Any,
    request: Mapping[str, Any],
    clicked: ClickedCall = lambda path, index, encoded: None,
) -> dict[str, Any]:
    """MONAI Label's result of an inference: {"label", "tag", "file", "params"}.

    `request["image"]` is an image id of `store`, or a Path, which only the server itself can put there. The prompts
    on an image of the store are kept there. `clicked` is called for images that are clicked on again, so not for those
    that came with the request (`uploaded`). Raises NotFoundError for an unknown model or image, InputError for MONAI
    Label's `save_label`, which would save a label without the right to, and what the task raises.
    """
    model, image = request.get("model"), request.get("image")
    if model not in tasks:
        raise NotFoundError("model", model, ", ".join(tasks))
    path = image if isinstance(image, Path) else store.image_path(image)
    if request.get("save_label"):
        raise InputError("save_label", request["save_label"], "false; save with PUT /datastore/label")
    file, params = with_memory(lambda: tasks[model]({**request, "image": path}), request.get("asker"))
    if not request.get("uploaded"):
        clicked(path, _middle_slice(params), params["seconds"]["encode"] > 0)
    if not isinstance(image, Path):
        _keep_prompts(store, str(image), request, params)
    return {"label": file, "tag": ORIGINAL, "file": file, "params": params}


def with_memory(
    work: Callable[[], T],
    asker: Any = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """`work()`, and where the device's memory runs out, again: training, which may have it, gives way to clicks.

    For MEMORY_SECONDS, or until the request's deadline. Raises BusyError when there is none by then.
    """
    deadline = clock() + MEMORY_SECONDS
    if isinstance(asker, Asker) and asker.deadline is not None:
        deadline = min(deadline, asker.deadline)
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler: the error's traceback holds on to the tensors.
        free_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if clock() >= deadline:
            raise BusyError("the device's memory is full, of a training perhaps; try again", RETRY_SECONDS)
        log.warning("memory ran out in a request; it is tried again")
        sleep(MEMORY_PAUSE)


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


def _middle_slice(params: Mapping[str, Any]) -> int | None:
    """The slice in the middle of the answer, None for an empty one."""
    objects = params["labels"].values() if "labels" in params else (params,)
    slices = sorted(index for one in objects for index in one["slices"])
    return slices[len(slices) // 2] if slices else None


def _keep_prompts(store: Any, image_id: str, request: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    try:
        store.last_prompts.note(image_id, describe_prompts(request, params))
    except OSError:
        # The mask is there and its user waits; what is lost is where it came from.
        log.exception("the prompts on %s could not be kept", image_id)
