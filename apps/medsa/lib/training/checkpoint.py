"""What a stopped or killed training goes on from: one file, that appears whole or not at all.

    state/checkpoints/<kind>.pt   weights, averages, optimizer, times, and the identity of the training they belong to

Written by the run that holds the training lock, read by the next one. Incremental and full trainings have one each, so
that a night's retraining survives what is trained in between. Tensors and plain values only; it is read without running
code.
"""

import os
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lib.files import flush, part_beside, remove_parts_of

FOLDER = "checkpoints"
# Writing may take this share of a run's time at the most.
WRITING_SHARE = 0.02


class CheckpointFile:
    """The checkpoint at `path` of the training that `identity` (JSON values) describes."""

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        every_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.identity, self._every = path, dict(identity), every_seconds
        self._clock = clock
        self._written = clock()
        self._cost = 0.0

    def is_due(self) -> bool:
        """Whether the last one is old enough."""
        return self._clock() - self._written >= max(self._every, self._cost / WRITING_SHARE)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replaces the file by `state`; raises OSError when it cannot be written, and the old one stays."""
        started = self._clock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = part_beside(self.path)
        try:
            torch.save({"identity": self.identity, **state}, part)
            flush(part)
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)
        flush(self.path.parent)
        self._written = self._clock()
        self._cost = self._written - started

    def read(self) -> dict[str, Any] | None:
        """What was written last for the same training; None when there is none, or one that cannot be read."""
        try:
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
            return None
        same = isinstance(stored, dict) and stored.get("identity") == self.identity
        return stored if same else None

    def remove(self) -> None:
        """Once a training is over there is nothing to go on from."""
        self.path.unlink(missing_ok=True)


def remove_parts(state: Path) -> None:
    """Removes what killed runs left half written in the checkpoints' folder under `state`."""
    remove_parts_of(state / FOLDER / "*")
