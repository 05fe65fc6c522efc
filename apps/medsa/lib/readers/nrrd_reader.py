"""NRRD files, grey or in colour."""

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from lib.errors import VolumeError
from lib.readers.stored import ALLOWED_AXES, Meaning, StoredImage, holds_colours, without_alpha

LPS = "left-posterior-superior"
TO_RAS: dict[str, tuple[float, float, float]] = {  # signs of the three directions, by the name of the space
    LPS: (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
KINDS: dict[str, Meaning] = {
    "rgb-color": "colour",
    "rgba-color": "colour",
    "3-color": "colour",
    "4-color": "colour",
    "vector": "vector",
    "3-vector": "vector",
    "4-vector": "vector",
    "none": "unsaid",
    "???": "unsaid",
}


def read_nrrd(path: Path) -> StoredImage:
    """The image in `path`. Colours are an axis without a direction, first (as ITK and Slicer write it) or last.

    Raises VolumeError for voxels in another file, an unknown space or colours that are not opaque, and what pynrrd
    raises for a damaged file.
    """
    _refuse_detached(path)
    array, header = nrrd.read(str(path), index_order="F")
    directions = np.asarray(header["space directions"], dtype=np.float64)
    axis = _colour_axis(array, header, directions)
    if axis is not None:
        directions = np.delete(directions, axis, axis=0)
        array = without_alpha(np.moveaxis(array, axis, -1), path.name)
    if not np.isfinite(directions).all():
        kinds = ", ".join(header.get("kinds") or ["unnamed"])
        raise VolumeError(
            f"image {path.name}: shape {array.shape} ({kinds}) is not a volume; allowed: {ALLOWED_AXES}"
        )
    return StoredImage(array, _affine(directions, header, path), axis is not None)


def _refuse_detached(path: Path) -> None:
    """The voxels have to be in the file itself: a header that names another file could name any of the server's."""
    with path.open("rb") as stream:
        header = nrrd.read_header(stream)
    if any("".join(field.lower().split()) == "datafile" for field in header):
        raise VolumeError(
            f"image {path.name}: its header names another data file; allowed: voxels after the header"
        )


def _colour_axis(array: NDArray[Any], header: dict[str, Any], directions: NDArray[np.float64]) -> int | None:
    kinds = header.get("kinds") or ["none"] * array.ndim
    for axis in (0, array.ndim - 1):
        spatial = bool(np.isfinite(directions[axis]).all())
        meaning = KINDS.get(str(kinds[axis]).lower(), "other")
        if not spatial and holds_colours(meaning, array.shape[axis], array.dtype):
            return axis
    return None


def _affine(directions: NDArray[np.float64], header: dict[str, Any], path: Path) -> NDArray[np.float64]:
    """(4, 4) from `directions`, one row for each axis of space; of a file that names no space LPS is taken."""
    space = str(header.get("space", LPS))
    signs = TO_RAS.get(space.lower())
    if signs is None:
        raise VolumeError(
            f"image {path.name}: space {space!r} is unknown; allowed: left-posterior-superior, "
            "right-anterior-superior, left-anterior-superior"
        )
    axes, dimension = directions[:3].shape
    affine = np.eye(4)
    affine[:dimension, :axes] = directions[:3].T
    affine[:dimension, 3] = header["space origin"]
    if (axes, dimension) == (2, 3):  # one slice somewhere in space
        normal = np.cross(directions[0], directions[1])
        affine[:3, 2] = normal / np.linalg.norm(normal)
    return np.asarray(np.diag([*signs, 1.0]) @ affine)
