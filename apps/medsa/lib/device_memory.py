"""Memory that runs out, on a GPU or on the machine: knowing that it did, and giving back what can be."""

from collections.abc import Callable
from typing import TypeVar

import torch

from lib.memory import give_back_freed_memory

T = TypeVar("T")
# What is said when there is no more: by torch's allocators (a class of its own on a GPU, a plain RuntimeError on a
# CPU), and by the libraries of a card that is nearly full.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there is no more memory, of the device or of the machine."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def once_more(work: Callable[[], T], device: torch.device) -> T:
    """`work()`, and where memory runs out, again after giving back what can be: clicks may just have had it."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the handler: the error's traceback holds on to the tensors.
    free_memory(device)
    return work()


def free_memory(device: torch.device) -> None:
    """Gives back what can be given back, for whoever else uses the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_back_freed_memory()
