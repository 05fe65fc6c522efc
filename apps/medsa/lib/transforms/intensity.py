"""From stored intensities to the 0..255 that SAM's encoder was trained on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.settings import IntensitySettings

MODEL_MAX = 255.0


def to_model_range(array: NDArray[Any], settings: IntensitySettings) -> NDArray[np.float32]:
    """`array` (any shape) as float32 in [0, 255], clipped, with statistics of the whole array.

    With percentiles, a constant array gives zeros. Two arrays that differ by a factor and an offset only give
    the same result, which MR needs, as its intensities have no unit.
    """
    values = np.asarray(array, dtype=np.float32)
    low, high = _window(values, settings)
    if not high > low:
        return np.zeros(values.shape, dtype=np.float32)
    with np.errstate(over="ignore"):  # far outside a narrow window; clipped like the rest
        share = (values - np.float32(low)) / np.float32(high - low)
    return np.clip(share, 0.0, 1.0) * np.float32(MODEL_MAX)


def _window(values: NDArray[np.float32], settings: IntensitySettings) -> tuple[float, float]:
    if settings.kind == "window" and settings.window_hu is not None:
        return settings.window_hu
    low, high = (float(value) for value in np.percentile(values, settings.percentiles))
    if low < high:
        return low, high
    # Nearly all voxels share one value, e.g. a small object in an empty field: the percentiles miss the rest.
    return float(values.min()), float(values.max())
