"""Leaving a step before it is over: on a CPU one can take longer than a stop is allowed to.

A step that was left has changed no weight, and what a step draws depends on its number alone: it can be made again
later, and is then the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lib.model.adapters import Adapter
from lib.model.medsa import MedSA


class StepAbandonedError(Exception):
    """The step was left because somebody asked for a stop. No RuntimeError: memory that runs out is one."""


@contextmanager
def abandoning(model: MedSA, should_stop: Callable[[], bool]) -> Iterator[None]:
    """While it lasts, a step on a CPU is left at the next adapter, there and back, when `should_stop()`.

    Raises StepAbandonedError then. Nothing is looked at on a GPU, where a step is short, and in a base alone, which has
    no adapters to look from.
    """
    on_cpu = model.sam.device.type == "cpu"
    adapters = [one for one in model.adapters.modules() if isinstance(one, Adapter) and on_cpu]

    def look(*_: Any) -> None:
        if should_stop():
            raise StepAbandonedError

    def look_both_ways(module: torch.nn.Module, given: Any, output: Tensor) -> None:
        look()
        if output.requires_grad:
            output.register_hook(look)

    handles = [adapter.register_forward_hook(look_both_ways) for adapter in adapters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
