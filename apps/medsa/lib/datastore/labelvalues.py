"""What a client sends as a label -> the values of the task's label set.

3D Slicer numbers the voxels by the order of its segments and says in `label_info` which name each number
has; OHIF does the same with numbers of its own. So values are mapped by name, never by position.
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lib.errors import InputError, LabelError
from lib.volume import Volume, load_label, values_in

BACKGROUND = "background"  # the segment that 3D Slicer keeps for negative clicks
RAW_SUFFIXES = (".bin", ".bin.gz")


def read_label(path: Path, image: Volume, labels: Mapping[str, int], label_info: object = None) -> np.ndarray:
    """The label in `path` as uint8 (i, j, k) on the grid of `image`, with the values of `labels`.

    `path` is NIfTI, NRRD, or `.bin`, also gzipped: uint8 voxels of the image's grid, i fastest. `label_info`, a list of
    {"name", "idx"}, names the values found in the file; without it they have to be those of `labels`.
    Raises LabelError when the grid differs or a value has no name or a name the task does not know;
    InputError for a malformed `label_info`.
    """
    names = parse_label_info(label_info)
    values = {name: index for index, name in names.items()} or dict(labels)
    raw = path.name.endswith(RAW_SUFFIXES)
    found = _read_raw(path, image, values) if raw else load_label(path, image, values)
    return _renumber(found, names, labels) if names else found


def parse_label_info(label_info: object) -> dict[int, str]:
    """Value in the file -> name; empty when the client sent none. Raises InputError for a malformed list."""
    allowed = 'a list of {"name": text, "idx": 1 to 255}, each idx and each name once'
    if label_info is None:
        return {}
    if not isinstance(label_info, list):
        raise InputError("label_info", label_info, allowed)
    names: dict[int, str] = {}
    for entry in label_info:
        name, index = _name_and_index(entry)
        if name is None or index is None or index in names or name in names.values():
            raise InputError("label_info", entry, allowed)
        names[index] = name
    return names


def _name_and_index(entry: object) -> tuple[str | None, int | None]:
    if not isinstance(entry, Mapping):
        return None, None
    name, index = entry.get("name"), entry.get("idx")
    whole = isinstance(index, int) and not isinstance(index, bool) and 1 <= index <= 255
    return (name if isinstance(name, str) and name else None), (index if whole else None)


def _read_raw(path: Path, image: Volume, values: Mapping[str, int]) -> np.ndarray:
    shape, needed = image.shape_ijk, math.prod(image.shape_ijk)
    flat = np.frombuffer(_raw_bytes(path, needed + 1), dtype=np.uint8)
    if flat.size != needed:
        sent = f"{flat.size} bytes were" if flat.size < needed else "more was"
        raise LabelError(f"label: {sent} sent; shape {shape} needs {needed} bytes")
    unknown = sorted(set(values_in(flat)) - {0, *values.values()})
    if unknown:
        raise LabelError(f"label: value {unknown[0]} is not in the label set {dict(values)}")
    return flat.reshape(shape, order="F")


def _raw_bytes(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of the file, unpacked if need be: what is small may unpack to any size."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.read(limit)
    except (OSError, EOFError, zlib.error) as error:
        raise LabelError(f"label: the file is damaged ({type(error).__name__}); allowed: gzip") from error


def _renumber(found: np.ndarray, names: Mapping[int, str], labels: Mapping[str, int]) -> np.ndarray:
    table = np.zeros(256, dtype=np.uint8)
    for value in values_in(found):
        if value == 0:
            continue
        name = names[value]
        if name not in labels and name.lower() != BACKGROUND:
            raise LabelError(
                f"label: segment {name!r} (value {value}) is not one of the labels {sorted(labels)}"
            )
        table[value] = labels.get(name, 0)
    # Most of a mask is zero, and in whatever order it lies in memory it can be gone through.
    flat = found.ravel(order="K")
    held = flat != 0
    renumbered = np.zeros_like(flat)
    renumbered[held] = table[flat[held]]
    return renumbered.reshape(found.shape, order="F" if found.flags.f_contiguous else "C")
