"""What a run finds when it begins: what is asked for, by which settings, where, and who else is there."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch

from lib.device_memory import free_memory
from lib.errors import TrainingStopped
from lib.model.medsa import MedSA
from lib.settings import Settings
from lib.training.clicks_first import ClicksFirst
from lib.training.request import RunRequest
from lib.training.tracking import Track, untracked
from lib.training.viewpoint import Viewpoint
from lib.training.world import ALONE, World
from lib.version import VERSION, source_digest

BuildModel = Callable[[], tuple[MedSA, str]]


@dataclass(frozen=True)
class Circumstances:
    """`build_model()` gives the base with fresh adapters and the SHA-256 of its file. `clock` gives seconds."""

    state: Path
    settings: Settings
    build_model: BuildModel
    request: RunRequest = RunRequest()  # noqa: RUF009 (it is frozen)
    device: str = "cpu"
    code_version: str = VERSION
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    should_stop: Callable[[], bool] = lambda: False
    world: World = ALONE
    track: Track = untracked

    @cached_property
    def view(self) -> Viewpoint:
        """How the task's volumes are shown to the model."""
        task = self.settings.task
        return Viewpoint(task.labels, task.intensity, task.slice_axis, self.device, task.flips)

    @cached_property
    def clicks(self) -> ClicksFirst:
        """Those of the server with this state folder."""
        return ClicksFirst.under(self.state)

    @property
    def view_digest(self) -> str:
        """Names how images and labels are shown: scores of the same cases compare only under one."""
        task = self.settings.task
        shown = {
            "labels": task.labels,
            "intensity": task.intensity.model_dump(mode="json"),
            "axis": task.slice_axis,
        }
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]

    def scoring(self, model: MedSA) -> str:
        """Names all that decides, beside weights and labels, how a case is scored: by another code or in another
        precision the same weights have other scores.
        """
        device = torch.device(self.device).type
        return f"{self.view_digest} {model.precision} on {device} by {source_digest()}"

    def between_cases(self) -> None:
        """Before each case that is looked at, and each part of one: clicks first, and a stop is a stop."""
        self.clicks.wait(self.should_stop, lambda: free_memory(torch.device(self.device)))
        self.check_stop(self.should_stop())

    def is_over(self) -> bool:
        """Whether the time that this run was given is over."""
        return self.request.until is not None and self.now() >= self.request.until

    @staticmethod
    def check_stop(stopped: bool) -> None:
        """Raises TrainingStopped where somebody asked for it."""
        if stopped:
            raise TrainingStopped("the run was asked to stop")
