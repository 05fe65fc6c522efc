"""How uncertain a prediction is: the score that decides which case is worth labelling next."""

import numpy as np
from scipy import ndimage

BORDER_PIXELS = 2


def mean_entropy(probability: np.ndarray) -> float:
    """Mean binary entropy in bits, 0 to 1, of `probability` (slices, rows, columns) over the object.

    The object is where the probability reaches 0.5, grown by two pixels within each slice so that its
    border counts; where nothing reaches 0.5, the place of the highest probability stands for it. Averaging
    over the whole volume instead would measure how small the object is.
    """
    if probability.size == 0:
        return 0.0
    foreground = probability >= min(0.5, float(probability.max()))
    within_slice = np.zeros((3, 3, 3), dtype=bool)
    within_slice[1] = True
    region = ndimage.binary_dilation(foreground, within_slice, iterations=BORDER_PIXELS)
    return float(_binary_entropy(probability[region]).mean())


def _binary_entropy(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
