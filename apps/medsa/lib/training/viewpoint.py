"""How a task's volumes are shown to the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lib.settings import IntensitySettings


@dataclass(frozen=True)
class Viewpoint:
    """Label map, intensities and slicing of a task, and the device that the model runs on.

    `flips` are the axes along which a mirrored image is as good as the image.
    """

    labels: Mapping[str, int]
    intensity: IntensitySettings
    slice_axis: Literal["auto", "i", "j", "k"] = "auto"
    device: str = "cpu"
    flips: tuple[str, ...] = ()
