"""Volumes as arrays with an affine: reading images and labels, writing masks.

Arrays are indexed (i, j, k) as stored, never reoriented. Affines are 4x4, from voxel index to RAS in mm,
whatever the file format's own convention.
"""

import gzip
import hashlib
import io
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from monai.data.image_reader import NibabelReader, NrrdReader
from monai.data.utils import to_affine_nd
from numpy.typing import NDArray

from lib.errors import LabelError, VolumeError

AFFINE_TOLERANCE_MM = 1e-3
SUFFIXES = (".nii.gz", ".nii", ".nrrd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Volume:
    """A numeric `array` (i, j, k) and the `affine` (4, 4) that takes its indices to RAS mm."""

    array: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def shape_ijk(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @cached_property
    def content_key(self) -> str:
        """SHA-256 of all that makes this volume: equal content has an equal key, wherever it came from."""
        head = f"{self.array.dtype.str} {self.array.shape} {self.affine.dtype.str}".encode()
        digest = hashlib.sha256(head)
        digest.update(np.ascontiguousarray(self.affine).data)
        digest.update(np.ascontiguousarray(self.array).data)
        return digest.hexdigest()


def load_volume(path: Path) -> Volume:
    """The image in `path` (NIfTI or NRRD). A 2D image becomes one slice (k = 1).

    Raises VolumeError: no such file, another format, unreadable, more than three axes, empty, NaN or infinite
    values, or an affine without a volume.
    """
    array, affine = _read(path)
    return Volume(_plain_numbers(_three_axes(array, path), path), _checked_affine(affine, path))


def load_label(path: Path, like: Volume, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """The label map in `path` as uint8 (i, j, k), with 0 and the values of `labels` only.

    Raises LabelError: unreadable, another shape or affine (by more than 0.001 mm) than `like`, or other
    values.
    """
    values = load_on_grid(path, like)
    allowed = {0, *labels.values()}
    strange = [value for value in np.unique(values).tolist() if value not in allowed]
    if strange:
        named = ", ".join(f"{value} {key}" for key, value in labels.items())
        raise LabelError(
            f"label {path.name}: value {strange[0]} is not in the label set; allowed: 0, {named}"
        )
    return values.astype(np.uint8)


def load_on_grid(path: Path, like: Volume) -> NDArray[Any]:
    """The values (i, j, k) in `path`, whatever they are.

    Raises LabelError: unreadable, or another shape or affine (by more than 0.001 mm) than `like`.
    """
    try:
        label = load_volume(path)
    except VolumeError as error:
        raise LabelError(str(error)) from error
    name = path.name
    if label.array.shape != like.shape_ijk:
        raise LabelError(f"label {name}: shape {label.array.shape} differs from its image's {like.shape_ijk}")
    difference = float(np.abs(label.affine - like.affine).max())
    if difference > AFFINE_TOLERANCE_MM:
        raise LabelError(
            f"label {name}: affine differs from its image's by {difference:.4g} mm; "
            f"allowed: {AFFINE_TOLERANCE_MM} mm"
        )
    return label.array


def save_mask(mask: NDArray[Any], like: Volume, path: Path, *, compress: bool = False) -> None:
    """Writes `mask` (i, j, k) as uint8 on the grid of `like`; the file appears whole or not at all.

    `path` ends in .nrrd (raw encoding, or gzip with `compress`) or .nii.gz. Raises LabelError for another
    shape, another ending or values that are not whole numbers in 0..255.
    """
    if mask.shape != like.shape_ijk:
        raise LabelError(f"mask for {path.name}: shape {mask.shape} is not its image's {like.shape_ijk}")
    stored = mask.astype(np.uint8)
    if not np.array_equal(stored, mask):
        raise LabelError(f"mask for {path.name}: has values that are not whole numbers in 0..255")
    if path.name.endswith(".nii.gz"):
        content = _nifti_bytes(stored, like.affine)
    elif path.name.endswith(".nrrd"):
        content = _nrrd_bytes(stored, like.affine, "gzip" if compress else "raw")
    else:
        raise LabelError(f"mask {path.name}: unknown file type; allowed: .nrrd, .nii.gz")
    _write_atomically(path, content)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if not path.is_file():
        raise VolumeError(f"image {path.name}: no such file")
    # The reader is chosen here: left to guess, MONAI also tries readers that unpickle what they are given.
    reader: Any
    if path.name.endswith((".nii", ".nii.gz")):
        reader = NibabelReader()
    elif path.name.endswith(".nrrd"):
        reader = NrrdReader()
    else:
        raise VolumeError(f"image {path.name}: unknown file type; allowed: {', '.join(SUFFIXES)}")
    try:
        if path.name.endswith(".nrrd"):
            _refuse_detached(path)
        array, meta = reader.get_data(reader.read(path))
        affine = np.asarray(meta["affine"], dtype=np.float64)
    except VolumeError:
        raise
    except Exception as error:  # the readers raise whatever their parsers stumble over
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise VolumeError(f"image {path.name}: cannot be read ({reason})") from error
    return np.asarray(array), _to_ras(to_affine_nd(3, affine), str(meta.get("space", "RAS")), path)


def _refuse_detached(path: Path) -> None:
    """The voxels have to be in the file itself: a header that names another file could name any of the server's."""
    with path.open("rb") as stream:
        header = nrrd.read_header(stream)
    if any("".join(field.lower().split()) == "datafile" for field in header):
        raise VolumeError(
            f"image {path.name}: its header names another data file; allowed: voxels after the header"
        )


def _to_ras(affine: NDArray[np.float64], space: str, path: Path) -> NDArray[np.float64]:
    """MONAI takes left-posterior-superior to RAS and leaves every other space of an NRRD as it is."""
    if space.lower() in ("ras", "right-anterior-superior"):
        return affine
    if space.lower() in ("las", "left-anterior-superior"):
        return np.asarray(np.diag([-1.0, 1.0, 1.0, 1.0]) @ affine)
    raise VolumeError(
        f"image {path.name}: space {space!r} is unknown; allowed: left-posterior-superior, "
        "right-anterior-superior, left-anterior-superior"
    )


def _three_axes(array: NDArray[Any], path: Path) -> NDArray[Any]:
    shape = array.shape
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise VolumeError(f"image {path.name}: shape {shape} is not a volume; allowed: three axes")
    if array.size == 0:
        raise VolumeError(f"image {path.name}: shape {shape} is empty")
    return array


def _plain_numbers(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Integers as they are in native byte order, all else real as float32; always C-ordered."""
    if array.dtype.kind in "iu":
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if array.dtype.kind not in "fb":
        raise VolumeError(f"image {path.name}: values of type {array.dtype} are not numbers")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
        floats = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise VolumeError(f"image {path.name}: has values that are NaN or infinite")
    return floats


def _checked_affine(affine: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"image {path.name}: its affine {affine.tolist()} spans no volume")
    return affine


def _nifti_bytes(mask: NDArray[np.uint8], affine: NDArray[np.float64]) -> bytes:
    image = nibabel.Nifti1Image(mask, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def _nrrd_bytes(mask: NDArray[np.uint8], affine: NDArray[np.float64], encoding: str) -> bytes:
    lps = _LPS_TO_RAS @ affine  # the flip is its own inverse
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain", "domain", "domain"],
        "encoding": encoding,
    }
    stream = io.BytesIO()
    nrrd.write(stream, mask, header, index_order="F")
    return stream.getvalue()


def _write_atomically(path: Path, content: bytes) -> None:
    # A name no image pattern matches: a folder that is watched for images must not offer half a file.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
