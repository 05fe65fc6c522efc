"""An image as its file has it, and when a fourth axis of it holds colours."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lib.errors import VolumeError

ALLOWED_AXES = "three axes, and one of 3 colours, of type uint8 or named as such in the header"

# What a header says of an axis: that it holds colours, that it holds a vector's parts, nothing, or something else.
Meaning = Literal["colour", "vector", "unsaid", "other"]


@dataclass(frozen=True, eq=False)
class StoredImage:
    """`array` with one axis for each of space, and a last one of 3 colours where `in_colour`.

    `affine` (4, 4) takes voxel indices to RAS mm. Neither is checked yet, but for the colours.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    in_colour: bool = False


def holds_colours(meaning: Meaning, count: int, dtype: np.dtype[Any]) -> bool:
    """Whether an axis of `count` values holds red, green, blue and perhaps alpha.

    Three frames of a time series look the same: without a word in the header only bytes are taken for colours. ITK
    stores colours as vectors, as it does displacements; those are never unsigned.
    """
    if meaning == "colour":
        return count in (3, 4)
    if meaning == "vector":
        return count in (3, 4) and dtype.kind == "u"
    return meaning == "unsaid" and count == 3 and dtype == np.uint8


def without_alpha(array: NDArray[Any], name: str) -> NDArray[Any]:
    """`array` (..., 3 or 4), or for grey (..., 1 or 2), less alpha; raises VolumeError where anything shines through.

    What shines through is the viewer's choice: the annotator would see something else than the model.
    """
    if array.shape[-1] % 2:
        return array
    opaque = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
    if not (array[..., -1] == opaque).all():
        raise VolumeError(
            f"image {name}: shape {array.shape} has an alpha channel that is not opaque; "
            f"allowed: no alpha channel, or {opaque} everywhere in it"
        )
    return array[..., :-1]
