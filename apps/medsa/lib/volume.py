"""Volumes as arrays with an affine: reading images and labels, writing masks.

Arrays are indexed (i, j, k) as stored, never reoriented; a colour image has its colours behind. Affines are 4x4,
from voxel index to RAS in mm, whatever the file format's own convention.
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
from numpy.typing import NDArray

from lib.errors import LabelError, UnavailableError, VolumeError
from lib.readers.nifti_reader import read_nifti
from lib.readers.nrrd_reader import read_nrrd
from lib.readers.picture_reader import read_picture
from lib.readers.stored import ALLOWED_AXES, StoredImage

AFFINE_TOLERANCE_MM = 1e-3
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*LABEL_SUFFIXES, *PICTURE_SUFFIXES)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_READERS = {
    ".nii.gz": read_nifti,
    ".nii": read_nifti,
    ".nrrd": read_nrrd,
    **dict.fromkeys(PICTURE_SUFFIXES, read_picture),
}


@dataclass(frozen=True, eq=False)
class Volume:
    """A numeric `array`, (i, j, k) or (i, j, k, 3) as red, green, blue, and its `affine` (4, 4) to RAS mm."""

    array: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def shape_ijk(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        i, j, k = self.array.shape[:3]
        return i, j, k

    @property
    def channels(self) -> int:
        """Values per voxel: 1, or 3 in colour."""
        return 1 if self.array.ndim == 3 else int(self.array.shape[3])

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
    """The image in `path` (NIfTI, NRRD, PNG or JPEG). A 2D image becomes one slice (k = 1).

    Raises VolumeError: no such file, another format, unreadable, more than three axes in space, other channels than
    one or three colours, empty, NaN or infinite values, or an affine without a volume.
    """
    stored = _read(path)
    return Volume(_plain_numbers(_three_axes(stored, path), path), _checked_affine(stored.affine, path))


def load_label(path: Path, like: Volume, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """The label map in `path` (NIfTI or NRRD) as uint8 (i, j, k), with 0 and the values of `labels` only.

    Raises LabelError: another format, in colour, unreadable, another shape or affine (by more than 0.001 mm) than
    `like`, or other values.
    """
    values = load_on_grid(path, like)
    allowed = {0, *labels.values()}
    strange = [value for value in values_in(values) if value not in allowed]
    if strange:
        named = ", ".join(f"{value} {key}" for key, value in labels.items())
        raise LabelError(
            f"label {path.name}: value {strange[0]} is not in the label set; allowed: 0, {named}"
        )
    return values.astype(np.uint8)


def values_in(array: NDArray[Any]) -> list[Any]:
    """The different values in `array`, ascending; of a mask, which is mostly zero, ten times as fast as np.unique."""
    flat = array.ravel(order="K")
    held = flat != 0
    if held.all():
        return list(np.unique(flat).tolist())
    return sorted([flat.dtype.type(0).item(), *np.unique(flat[held]).tolist()])


def load_on_grid(path: Path, like: Volume) -> NDArray[Any]:
    """The values (i, j, k) in `path`, whatever they are.

    Raises LabelError: another format, in colour, unreadable, or another shape or affine (by more than 0.001 mm) than
    `like`.
    """
    name = path.name
    if name.endswith(PICTURE_SUFFIXES):
        raise LabelError(f"label {name}: is a picture; allowed: {', '.join(LABEL_SUFFIXES)}")
    try:
        label = load_volume(path)
    except VolumeError as error:
        raise LabelError(str(error)) from error
    if label.channels != 1:
        raise LabelError(
            f"label {name}: shape {label.array.shape} is in colour; allowed: one value per voxel"
        )
    if label.shape_ijk != like.shape_ijk:
        raise LabelError(f"label {name}: shape {label.shape_ijk} differs from its image's {like.shape_ijk}")
    difference = float(np.abs(label.affine - like.affine).max())
    if difference > AFFINE_TOLERANCE_MM:
        raise LabelError(
            f"label {name}: affine differs from its image's by {difference:.4g} mm; "
            f"allowed: {AFFINE_TOLERANCE_MM} mm"
        )
    return label.array


def save_mask(
    mask: NDArray[Any], like: Volume, path: Path, *, compress: bool = False, durable: bool = True
) -> None:
    """Writes `mask` (i, j, k) as uint8 on the grid of `like`; the file appears whole or not at all.

    With `durable` False it may be lost in a power cut, and takes half of the time: for files that nobody keeps.

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
    _write_atomically(path, content, durable)


def save_image(volume: Volume, path: Path) -> None:
    """Writes a grey `volume` as NRRD, whose affine keeps all its digits; the file appears whole or not at all.

    Raises VolumeError for another ending, and in colour.
    """
    if volume.channels != 1 or not path.name.endswith(".nrrd"):
        raise VolumeError(f"image {path.name}: {volume.channels} channels; allowed: one, in a file .nrrd")
    _write_atomically(path, _nrrd_bytes(volume.array, volume.affine, "raw"), durable=False)


def _read(path: Path) -> StoredImage:
    if not path.is_file():
        raise UnavailableError(f"image {path.name}: no such file")
    # The reader is chosen here: left to guess, MONAI also tries readers that unpickle what they are given.
    read = next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)
    if read is None:
        raise VolumeError(f"image {path.name}: unknown file type; allowed: {', '.join(SUFFIXES)}")
    try:
        return read(path)
    except (VolumeError, MemoryError):
        raise
    except Exception as error:  # the readers raise whatever their parsers stumble over
        reason = " ".join(f"{type(error).__name__}: {error}".split()).replace(f"{path.parent}/", "")[:300]
        # The system's own errors have a number: no permission, too many open files, a network that is gone.
        of_system = isinstance(error, OSError) and error.errno is not None
        kind = UnavailableError if of_system else VolumeError
        raise kind(f"image {path.name}: cannot be read ({reason})") from error


def _three_axes(stored: StoredImage, path: Path) -> NDArray[Any]:
    """(i, j, k), in colour (i, j, k, 3); two axes in space become three."""
    array = stored.array
    shape, spatial = array.shape, array.ndim - stored.in_colour
    if array.size == 0:
        raise VolumeError(f"image {path.name}: shape {shape} is empty; allowed: at least one voxel")
    while spatial > 3 and array.shape[spatial - 1] == 1:
        array, spatial = array.squeeze(spatial - 1), spatial - 1
    if spatial == 2:
        array, spatial = np.expand_dims(array, 2), 3
    if spatial != 3:
        raise VolumeError(f"image {path.name}: shape {shape} is not a volume; allowed: {ALLOWED_AXES}")
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


def _nrrd_bytes(array: NDArray[Any], affine: NDArray[np.float64], encoding: str) -> bytes:
    lps = _LPS_TO_RAS @ affine  # the flip is its own inverse
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain", "domain", "domain"],
        "encoding": encoding,
    }
    stream = io.BytesIO()
    nrrd.write(stream, array, header, index_order="F")
    return stream.getvalue()


def _write_atomically(path: Path, content: bytes, durable: bool) -> None:
    # A name no image pattern matches: a folder that is watched for images must not offer half a file.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
