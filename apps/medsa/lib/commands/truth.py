"""Folders of images and true labels on disk, as the simulated annotator and the evaluation read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.errors import InputError, LabelError, NotFoundError
from lib.volume import SUFFIXES, Volume, load_volume


@dataclass(frozen=True, eq=False)
class Truth:
    """`label` (i, j, k) uint8 holds values of a label set, `grid` is the file as it was read."""

    grid: Volume
    label: NDArray[np.uint8]

    def objects(self, labels: Mapping[str, int], only: str | None = None) -> dict[str, NDArray[np.bool_]]:
        """A mask for every label that is present, or for `only`, by name in the order of `labels`."""
        wanted = {name: value for name, value in labels.items() if only in (None, name)}
        masks = {name: self.label == value for name, value in wanted.items()}
        return {name: mask for name, mask in masks.items() if mask.any()}


def find_cases(folder: Path) -> dict[str, Path]:
    """The images of `folder` by case id (the name without its ending), sorted by id.

    Raises NotFoundError when there is no such folder or none of them in it.
    """
    found = {
        path.name.removesuffix(ending): path for ending in SUFFIXES for path in folder.glob(f"*{ending}")
    }
    if not found:
        raise NotFoundError("folder", str(folder), f"a folder with files that end in {', '.join(SUFFIXES)}")
    return dict(sorted(found.items()))


def load_truth(path: Path, labels: Mapping[str, int], merge: str | None = None) -> Truth:
    """The label map in `path`; with `merge` all that is not zero becomes that one label.

    Raises InputError when `merge` is no label, VolumeError or LabelError for a file that is no label map.
    """
    if merge is not None and merge not in labels:
        raise InputError("merge", merge, f"one of {', '.join(labels)}")
    grid = load_volume(path)
    if grid.channels != 1:
        raise LabelError(
            f"label {path.name}: shape {grid.array.shape} is in colour; allowed: one value per voxel"
        )
    if merge is not None:
        return Truth(grid, (grid.array != 0).astype(np.uint8) * np.uint8(labels[merge]))
    label = grid.array.astype(np.uint8)
    if not np.array_equal(label, grid.array):
        raise LabelError(f"label {path.name}: has values that are not whole numbers in 0..255")
    return Truth(grid, label)
