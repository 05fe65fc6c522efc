"""From stored intensities to the 0..255 that SAM's encoder was trained on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.settings import IntensitySettings
from lib.transforms.percentiles import percentiles

MODEL_MAX = 255.0
Window = tuple[float, float]


def intensity_window(array: NDArray[Any], settings: IntensitySettings) -> Window:
    """The intensities (low, high) that become 0 and 255, by statistics of the whole `array` (any shape, finite).

    Colours are not told apart: all their values count together. For a constant array the two are equal.
    """
    if settings.kind == "window" and settings.window_hu is not None:
        return settings.window_hu
    low, high = percentiles(array, settings.percentiles)
    if low < high:
        return low, high
    # Nearly all voxels share one value, e.g. a small object in an empty field: the percentiles miss the rest.
    return float(np.float32(array.min())), float(np.float32(array.max()))


def to_model_range(
    array: NDArray[Any], settings: IntensitySettings, window: Window | None = None
) -> NDArray[np.float32]:
    """`array` (any shape) as float32 in [0, 255], clipped.

    `window` is that of the volume where `array` is a part of it; None: its own. With percentiles, a constant array
    gives zeros. Two arrays that differ by a factor and an offset only give the same result, which MR needs, as its
    intensities have no unit.
    """
    low, high = intensity_window(array, settings) if window is None else window
    values = np.asarray(array, dtype=np.float32)
    if not high > low:
        return np.zeros(values.shape, dtype=np.float32)
    with np.errstate(over="ignore"):  # far outside a narrow window; clipped like the rest
        share = (values - np.float32(low)) / np.float32(high - low)
    return np.clip(share, 0.0, 1.0) * np.float32(MODEL_MAX)
