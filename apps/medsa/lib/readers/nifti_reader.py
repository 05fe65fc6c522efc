"""NIfTI files, grey or in colour."""

from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import NibabelReader
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from lib.readers.stored import Meaning, StoredImage, holds_colours, without_alpha

INTENTS: dict[int, Meaning] = {0: "unsaid", 1007: "vector", 2003: "colour", 2004: "colour"}
COLOUR_FIELDS = (("R", "G", "B"), ("R", "G", "B", "A"))


def read_nifti(path: Path) -> StoredImage:
    """The image in `path`. Colours are RGB24, RGBA32, a vector (as ITK and Slicer write them) or a fourth axis.

    Raises VolumeError for colours that are not opaque, and what nibabel raises for a damaged file.
    """
    reader = NibabelReader()
    array, meta = reader.get_data(reader.read(path))
    affine = np.asarray(meta["affine"], dtype=np.float64)
    if array.dtype.names in COLOUR_FIELDS:
        return StoredImage(without_alpha(structured_to_unstructured(array), path.name), affine, True)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim < 4 or not holds_colours(_meaning(meta), array.shape[-1], array.dtype):
        return StoredImage(array, affine)
    return StoredImage(without_alpha(_without_time(array), path.name), affine, True)


def _meaning(meta: dict[str, Any]) -> Meaning:
    return INTENTS.get(int(meta["intent_code"]), "other")


def _without_time(array: NDArray[Any]) -> NDArray[Any]:
    """(i, j, k, 1, c) -> (i, j, k, c): a vector is the fifth axis, behind the one for time."""
    return array[:, :, :, 0] if array.ndim == 5 and array.shape[3] == 1 else array
