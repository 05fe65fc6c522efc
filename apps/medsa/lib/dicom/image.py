"""The pixels of a DICOM series as a volume."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from lib.dicom.grid import SeriesGrid, numbers_of, series_grid
from lib.errors import VolumeError
from lib.volume import Volume


def read_headers(files: Sequence[Path]) -> list[Dataset]:
    """What the files say but for their pixels. Raises VolumeError naming a file that is no DICOM."""
    found: list[Dataset] = []
    for file in files:
        try:
            found.append(pydicom.dcmread(file, stop_before_pixels=True))
        except (InvalidDicomError, OSError, EOFError) as error:
            raise VolumeError(f"{file.name}: cannot be read as DICOM ({error})") from error
    return found


def load_series(files: Sequence[Path]) -> tuple[Volume, SeriesGrid]:
    """The volume of one series, slices in the order of the grid, values as the modality means them (HU for CT).

    Integers stay integers where the rescaling is one of integers. Raises VolumeError for what `series_grid` refuses,
    for colour, and for pixels that cannot be decoded.
    """
    headers = read_headers(files)
    grid = series_grid(headers)
    for header in headers:
        _check_values(header)
    ordered = [files[place] for place in grid.order]
    return Volume(_pixels(ordered, grid), grid.affine), grid


def _check_values(header: Dataset) -> None:
    samples = header.get("SamplesPerPixel", 1)
    if samples != 1:
        raise VolumeError(f"SamplesPerPixel: {samples} is not accepted; allowed: 1, a grey image")
    for name in ("RescaleSlope", "RescaleIntercept"):
        value = header.get(name)
        if value not in (None, ""):
            numbers_of(name, [value], 1)


def _pixels(ordered: Sequence[Path], grid: SeriesGrid) -> NDArray[Any]:
    """(i, j, k): each file's slice, decoded and rescaled by GDCM."""
    slices = [_slice(file) for file in ordered]
    kinds = {array.dtype for array in slices}
    # Slices with a rescaling of their own, as PET has them, come in different types.
    dtype = kinds.pop() if len(kinds) == 1 else np.result_type(*kinds)
    array = np.stack([array.astype(dtype, copy=False) for array in slices], axis=-1)
    if array.shape != grid.shape_ijk:
        raise VolumeError(f"pixels: shape {array.shape} is not {grid.shape_ijk}, as Columns and Rows say")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise VolumeError("pixels: has values that are NaN or infinite")
    return np.ascontiguousarray(array)


def _slice(file: Path) -> NDArray[Any]:
    """(i, j) of one file."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].replace(str(file.parent), "")[:200]
        raise VolumeError(f"{file.name}: its pixels cannot be decoded ({reason})") from error
    array = sitk.GetArrayViewFromImage(image)
    return np.array(array[0] if array.ndim == 3 else array).T
