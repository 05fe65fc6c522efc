"""What an annotator gave the model: clicks, boxes, a mask and the label meant, all in voxels of the stored array."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """Voxels from `start_ijk` up to, but not including, `stop_ijk`."""

    start_ijk: Voxel
    stop_ijk: Voxel


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """An earlier segmentation (i, j, k) bool to start from. Equal by content."""

    inside: NDArray[np.bool_] = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Of shape and voxels."""
        head = str(self.inside.shape).encode()
        return hashlib.sha256(head + np.packbits(self.inside).tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskPrompt) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


@dataclass(frozen=True)
class PromptSet:
    """Prompts for one object in one volume. Points are (i, j, k); `label` is its name, if one was given."""

    positive_ijk: tuple[Voxel, ...] = ()
    negative_ijk: tuple[Voxel, ...] = ()
    boxes: tuple[Box, ...] = ()
    label: str | None = None
    mask: MaskPrompt | None = None

    def describe(self) -> dict[str, Any]:
        """As JSON: what was understood. A mask is named by its voxels' number and digest."""
        mask = None
        if self.mask is not None:
            mask = {"voxels": int(np.count_nonzero(self.mask.inside)), "sha256": self.mask.sha256}
        return {
            "positive_ijk": [list(point) for point in self.positive_ijk],
            "negative_ijk": [list(point) for point in self.negative_ijk],
            "boxes": [
                {"start_ijk": list(box.start_ijk), "stop_ijk": list(box.stop_ijk)} for box in self.boxes
            ],
            "label": self.label,
            "mask": mask,
        }
