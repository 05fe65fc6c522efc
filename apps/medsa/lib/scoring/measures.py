"""How much a prediction leaves open, in numbers from probabilities (n, m, m) of n slices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BORDER_PIXELS = 2  # to either side of an outline
INSIDE = 0.5

Probability = NDArray[np.float32]
_WITHIN_SLICE = np.zeros((3, 3, 3), dtype=bool)
_WITHIN_SLICE[1] = True


@dataclass(frozen=True)
class Entropy:
    """Mean binary entropy in bits, 0 to 1: `inside` the predicted object, and along its `border`."""

    inside: float
    border: float


def entropy_of(probability: Probability) -> Entropy:
    """Of the object, which is where the probability reaches one half, and of two pixels to either side of its outline.

    Averaging over the whole volume instead would measure how small the object is. Where nothing reaches one half, the
    place of the highest probability stands for the object.
    """
    if probability.size == 0:
        return Entropy(0.0, 0.0)
    bits = binary_entropy(probability)
    inside = probability >= min(INSIDE, float(probability.max()))
    border = _border(inside)
    return Entropy(float(bits[inside].mean()), float(bits[border].mean()) if border.any() else 0.0)


def binary_entropy(probability: Probability) -> NDArray[np.float64]:
    """In bits, of each pixel."""
    p = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def disagreement(one: Probability, other: Probability) -> float:
    """1 - Dice of two predictions, with probabilities as they are: 0 for the same, 1 for nothing in common."""
    common = 2.0 * float((one * other).sum(dtype=np.float64))
    both = float((one * one).sum(dtype=np.float64) + (other * other).sum(dtype=np.float64))
    return 0.0 if both == 0.0 else max(0.0, 1.0 - common / both)


def _border(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Within each slice: neighbouring slices may lie far apart."""
    grown = ndimage.binary_dilation(inside, _WITHIN_SLICE, iterations=BORDER_PIXELS)
    # What lies beyond the image is no border.
    shrunk = ndimage.binary_erosion(inside, _WITHIN_SLICE, iterations=BORDER_PIXELS, border_value=1)
    return np.asarray(grown & ~shrunk)
