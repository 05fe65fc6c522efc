"""torch.compile, where it was asked for, and never at the price of an answer."""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config

log = logging.getLogger(__name__)

MAX_KINDS = 32


class Compiled:
    """`run`, compiled at its first call; where that fails, `run` as it is from then on, and the log says why.

    What may fail is the machine, not the network: no C++ compiler, no Triton, an operation the compiler doesn't know.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self._plain = run
        self._current: Callable[..., Any] = torch.compile(run)

    @property
    def fell_back(self) -> bool:
        """Whether compiling failed."""
        return self._current is self._plain

    def __call__(self, *arguments: Any) -> Any:
        if self.fell_back:
            return self._plain(*arguments)
        try:
            # Each kind of call (windows or not, another number of slices) is compiled for itself. One kind too many
            # must not silently run as it is.
            with torch._dynamo.config.patch(recompile_limit=MAX_KINDS, fail_on_recompile_limit_hit=True):
                return self._current(*arguments)
        except Exception as error:  # noqa: BLE001 (compilers fail in many ways; an error of `run` itself comes again)
            result = self._plain(*arguments)
            self._current = self._plain
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("the network runs without torch.compile: %s", reason)
            return result
