"""What an annotator gave the model: clicks, boxes and the label meant, all in voxels of the stored array."""

from dataclasses import dataclass

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """Voxels from `start_ijk` up to, but not including, `stop_ijk`."""

    start_ijk: Voxel
    stop_ijk: Voxel


@dataclass(frozen=True)
class PromptSet:
    """Prompts for one object in one volume. Points are (i, j, k); `label` is its name, if one was given."""

    positive_ijk: tuple[Voxel, ...] = ()
    negative_ijk: tuple[Voxel, ...] = ()
    boxes: tuple[Box, ...] = ()
    label: str | None = None
