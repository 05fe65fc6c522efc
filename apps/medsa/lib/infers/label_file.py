"""The label file that comes with a request: a segmentation to refine, or strokes.

Both viewers number the segments of such a file as they like and say in `label_info` which is which.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.datastore.labelvalues import RAW_SUFFIXES, parse_label_info, read_label
from lib.errors import InputError, LabelError
from lib.prompts.coordinates import Grid, parse_roi, parse_slice
from lib.prompts.parse import Drawn, parse_label
from lib.prompts.promptset import MaskPrompt
from lib.prompts.scribbles import stroke_points
from lib.volume import Volume, load_on_grid

MASK, SCRIBBLES = "mask", "scribbles"
# What MONAI Label's scribbles use where nothing is said about them.
BACKGROUND_VALUE, FOREGROUND_VALUE = 2, 3
NO_VALUE = 256  # what no voxel has
ANY_VALUE = {str(value): value for value in range(1, 256)}


def read_drawn(
    request: Mapping[str, Any], volume: Volume, grid: Grid, labels: Mapping[str, int], kind: str | None = None
) -> Drawn:
    """What the file at `request["label_file"]` marks, if the server has put one there.

    `kind`, else `label_as`, says whether it is a "mask" or "scribbles". Raises InputError for what is said about the
    file, LabelError for a file that does not fit the image.
    """
    path = request.get("label_file")
    if not isinstance(path, Path):  # a client's own text: only the server can name a file
        return Drawn()
    kind = kind or _parse_kind(request.get("label_as"))
    values = _read_values(path, volume)
    segments = _segments(request.get("label_info"))
    if kind == MASK:
        label = parse_label("label", request.get("label"), labels)
        return Drawn(mask=_mask(values, segments, label, labels))
    return _strokes(request, values, segments, volume, grid)


def _parse_kind(value: Any) -> str:
    kind = MASK if value is None or value == "" else value
    if kind not in (MASK, SCRIBBLES):
        raise InputError("label_as", value, f"{MASK}, {SCRIBBLES}")
    return str(kind)


def _read_values(path: Path, volume: Volume) -> np.ndarray:
    if path.name.endswith(RAW_SUFFIXES):
        return read_label(path, volume, ANY_VALUE)
    values = load_on_grid(path, volume)
    with np.errstate(invalid="ignore"):  # what does not fit differs afterwards
        whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        strange = values[whole != values].ravel()[0]
        raise LabelError(f"label: value {strange} is not accepted; allowed: whole numbers from 0 to 255")
    return whole


def _segments(label_info: object) -> dict[str, int]:
    """Name -> value in the file. 3D Slicer calls the value `id` beside strokes, and `idx` when it saves."""
    if isinstance(label_info, list):
        label_info = [
            {"idx": entry.get("id"), **entry} if isinstance(entry, Mapping) else entry for entry in label_info
        ]
    return {name: value for value, name in parse_label_info(label_info).items()}


def _mask(
    values: np.ndarray, segments: Mapping[str, int], label: str | None, labels: Mapping[str, int]
) -> MaskPrompt | None:
    """The voxels of the label meant; None where there are none."""
    found = [value for value in np.unique(values).tolist() if value]
    if not found:
        return None
    if label is None and len(labels) == 1:
        label = next(iter(labels))
    meant = (segments or labels).get(label or "")
    # A mask of one value, as medsa answers it, is the object whatever its number.
    if len(found) == 1 and (not segments or label is None):
        meant = found[0]
    if meant is None:
        raise InputError(
            "label", label, f"the name of one of the file's segments; it holds the values {found}"
        )
    return MaskPrompt(values == meant) if meant in found else None


def _strokes(
    request: Mapping[str, Any], values: np.ndarray, segments: Mapping[str, int], volume: Volume, grid: Grid
) -> Drawn:
    """Strokes inside the roi, if there is one, and beside them the segment that they are to correct."""
    strokes = values
    box = parse_roi(request.get("roi"), grid, parse_slice(request.get("slice"), grid))
    if box is not None:
        window = tuple(slice(low, high) for low, high in zip(box.start_ijk, box.stop_ijk, strict=True))
        strokes = np.zeros_like(values)
        strokes[window] = values[window]
    foreground = _stroke_value(request, "foreground", "scribbles_fg_label", segments, FOREGROUND_VALUE)
    background = _stroke_value(request, "background", "scribbles_bg_label", segments, BACKGROUND_VALUE)
    if foreground == background != NO_VALUE:
        raise InputError(
            "scribbles_fg_label", foreground, "another value than that of the background's strokes"
        )
    inside = strokes == foreground
    points = stroke_points(inside, strokes == background, grid.axis, volume.spacing_mm)
    segment = segments.get(str(request.get("selected_label_name") or request.get("label")))
    if segment is None or not (values == segment).any():
        return Drawn(*points)
    # A stroke in a label map takes the place of the segment under it.
    return Drawn(*points, MaskPrompt((values == segment) | inside))


def _stroke_value(
    request: Mapping[str, Any], sort: str, key: str, segments: Mapping[str, int], usual: int
) -> int:
    value = request.get(key)
    if value is None:
        # Where segments are named, the usual number may be some other one's.
        return segments.get(f"{sort}_scribbles", NO_VALUE if segments else usual)
    if type(value) is not int or not 1 <= value <= 255:
        raise InputError(key, value, "a whole number from 1 to 255")
    return value
