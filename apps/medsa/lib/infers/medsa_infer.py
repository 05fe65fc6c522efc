"""MONAI Label's inference tasks `medsa` (the whole object) and `medsa_2d` (the prompted slices only)."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.errors import InputError
from lib.infers.serving import Served, ServingModel
from lib.infers.volumes import VolumeCache
from lib.predictor import Prediction
from lib.prompts.parse import parse_request
from lib.prompts.promptset import PromptSet
from lib.volume import Volume, save_mask

EXTENSIONS = (".nii.gz", ".nrrd")


@dataclass(frozen=True)
class AnswerFormat:
    """How the mask is sent: the file's ending, and whether an NRRD is compressed. Voxels are always uint8."""

    extension: str = ".nii.gz"
    compress: bool = True


class MedsaInfer(InferTask):
    """Answers clicks and boxes on one volume with a mask of 0 and 1 on the volume's own grid."""

    def __init__(
        self, serving: ServingModel, volumes: VolumeCache, labels: Mapping[str, int], dimension: int
    ) -> None:
        scope = "the whole object" if dimension == 3 else "the prompted slices only"
        super().__init__(InferType.DEEPGROW, dict(labels), dimension, f"Clicks and boxes -> {scope}")
        self._serving, self._volumes = serving, volumes
        self._whole_object = dimension == 3

    def is_valid(self) -> bool:
        """Always: a base that cannot be loaded keeps the server from starting."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """(temporary file with the mask, params of the answer); `request["image"]` is a file's path.

        Raises InputError for what the client sent, VolumeError for an image that cannot be read.
        """
        answer = parse_format(request)
        volume = self._volumes.load(Path(request["image"]))
        prompts = parse_request(request, volume.shape_ijk, self.labels)
        served = self._serving.current()
        prediction = served.predictor.predict(volume, prompts, whole_object=self._whole_object)
        path = _write(prediction.mask, volume, answer)
        return str(path), describe(served, prompts, prediction, self.labels)


def parse_format(request: Mapping[str, Any]) -> AnswerFormat:
    """The format from `result_extension`, `result_dtype` and `result_compress`; raises InputError."""
    extension = request.get("result_extension") or ".nii.gz"
    if extension not in EXTENSIONS:
        raise InputError("result_extension", extension, ", ".join(EXTENSIONS))
    dtype = request.get("result_dtype") or "uint8"
    if dtype != "uint8":
        raise InputError("result_dtype", dtype, "uint8")
    compress = request.get("result_compress", True)
    if not isinstance(compress, bool):
        raise InputError("result_compress", compress, "true or false")
    return AnswerFormat(extension, compress)


def describe(
    served: Served, prompts: PromptSet, prediction: Prediction, labels: Mapping[str, int]
) -> dict[str, Any]:
    """What is said beside the mask: which model answered, what it understood, and how sure it is."""
    return {
        "base": served.base,
        "version": served.adapter_version,
        "label": prompts.label,
        "label_names": dict(labels),
        "prompts": prompts.describe(),
        "slices": list(prediction.slices),
        "quality": {str(index): round(value, 4) for index, value in prediction.quality.items()},
        "seconds": {name: round(value, 4) for name, value in prediction.seconds.items()},
    }


def _write(mask: np.ndarray, like: Volume, answer: AnswerFormat) -> Path:
    handle, name = tempfile.mkstemp(prefix="medsa-", suffix=answer.extension)
    os.close(handle)
    path = Path(name)
    try:
        save_mask(mask, like, path, compress=answer.compress)
    except BaseException:
        path.unlink()
        raise
    return path
