"""What all inference tasks share: reading the image, taking the time of each stage, writing the answer.

Concurrency. A task is called from many threads and keeps nothing between calls. It waits for its turn inside the
predictor only: images are read and masks written outside of it.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.errors import InputError
from lib.infers.answer_format import parse_format, write_mask
from lib.infers.label_file import read_drawn
from lib.infers.serving import Served, ServingModel
from lib.infers.volumes import VolumeCache
from lib.prompts.coordinates import Grid
from lib.prompts.parse import Drawn
from lib.transforms.geometry import slice_axis
from lib.turns import Asker
from lib.volume import Volume


@dataclass(frozen=True)
class Question:
    """One request, the image it is about and the model that answers it."""

    request: Mapping[str, Any]
    volume: Volume
    served: Served

    @property
    def grid(self) -> Grid:
        """The image's voxels, and the axis along which the model goes through them."""
        axis = slice_axis(self.volume.spacing_mm, self.served.predictor.slice_axis, self.volume.shape_ijk)
        return Grid(self.volume.shape_ijk, axis)

    @property
    def asker(self) -> Asker:
        """Who asks, as the server knows it."""
        asker = self.request.get("asker")
        return asker if isinstance(asker, Asker) else Asker()

    def drawn(self, labels: Mapping[str, int], kind: str | None = None) -> Drawn:
        """What its label file marks; see `read_drawn`."""
        return read_drawn(self.request, self.volume, self.grid, labels, kind)

    def refuse_label_file(self) -> None:
        """For tasks that have no use for one; raises InputError."""
        if isinstance(self.request.get("label_file"), Path):
            raise InputError(
                "label", "a label file", "no label file for this model; medsa and medsa_2d take one"
            )


@dataclass(frozen=True)
class Reply:
    """`mask` (i, j, k) uint8 as it is sent, what is said beside it, and the seconds that the model's stages took."""

    mask: np.ndarray
    params: Mapping[str, Any]
    seconds: Mapping[str, float]


@dataclass
class _Stages:
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def all_with(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Those of the model in between, and the total of everything."""
        total = time.perf_counter() - self.started
        found = {"wait": 0.0, **self.seconds, **seconds, "total": total}
        return {name: round(value, 4) for name, value in found.items()}


class MedsaTask(InferTask):
    """One of MONAI Label's inference tasks, answered by the model that serves."""

    def __init__(
        self,
        serving: ServingModel,
        volumes: VolumeCache,
        kind: InferType,
        labels: Mapping[str, int],
        dimension: int,
        description: str,
    ) -> None:
        super().__init__(kind, dict(labels), dimension, description)
        self._serving, self._volumes = serving, volumes

    def is_valid(self) -> bool:
        """Always: a base that cannot be loaded keeps the server from starting."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """(temporary file with the mask, params of the answer); `request["image"]` is a file's path.

        Raises InputError for what the client sent, VolumeError for an image that cannot be read, BusyError when the
        turn does not come in time.
        """
        stages = _Stages()
        answer = parse_format(request)
        with stages.stage("load"):
            volume = self._volumes.load(Path(request["image"]))
            served = self._serving.current()
        reply = self._reply(Question(request, volume, served))
        with stages.stage("write"):
            path = write_mask(reply.mask, volume, answer)
        return str(path), {
            "base": served.base,
            "version": served.adapter_version,
            # All of them, also those without a voxel: 3D Slicer takes value n for the nth of these names.
            "label_names": dict(self.labels),
            **reply.params,
            "seconds": stages.all_with(reply.seconds),
        }

    @abstractmethod
    def _reply(self, question: Question) -> Reply:
        """The mask for the question; raises as `__call__` does."""
