"""How an answer is sent: the mask's file, and what is said beside it."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import InputError
from lib.volume import Volume, save_mask

EXTENSIONS = (".nii.gz", ".nrrd")


@dataclass(frozen=True)
class AnswerFormat:
    """How the mask is sent: the file's ending, and whether an NRRD is compressed. Voxels are always uint8."""

    extension: str = ".nii.gz"
    compress: bool = True


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


def write_mask(mask: np.ndarray, like: Volume, answer: AnswerFormat) -> Path:
    """A new temporary file with `mask` (i, j, k) on the grid of `like`."""
    handle, name = tempfile.mkstemp(prefix="medsa-", suffix=answer.extension)
    os.close(handle)
    path = Path(name)
    try:
        save_mask(mask, like, path, compress=answer.compress, durable=False)
    except BaseException:
        path.unlink()
        raise
    return path


def describe_slices(slices: Iterable[int], quality: Mapping[int, float]) -> dict[str, Any]:
    """The slices answered, and the IoU that the model predicts for each, as JSON."""
    return {
        "slices": list(slices),
        "quality": {str(index): round(value, 4) for index, value in quality.items()},
    }


def relabelled(mask: np.ndarray, values: Iterable[int]) -> np.ndarray:
    """`mask` with position n (from 1) of `values` as that value."""
    return np.array([0, *values], dtype=np.uint8)[mask]
