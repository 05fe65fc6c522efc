"""The real slices that benchmarks/base.py measures on: which files, which labels, and the slices that show them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lib.commands.truth import find_cases
from lib.errors import NotFoundError
from lib.settings import IntensitySettings
from lib.transforms.geometry import PlaneGeometry, plane_geometry, slice_axis, take_planes
from lib.transforms.intensity import to_model_range
from lib.volume import load_volume

SMALLEST_OBJECT = (
    30  # voxels of an object in a slice; below, one voxel of the outline moves Dice by several points
)
HIPPOCAMPUS_CASES = 48
CT_WINDOW_HU = (-160.0, 240.0)
CT_ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "aorta", "urinary_bladder")
VERTEBRA = "vertebrae_"  # and the level: each of them is an object of its own
ANYTHING = -1  # instead of a label's value: all that is not zero

T = TypeVar("T")


class MissingSetError(Exception):
    """A data set is not there, or not whole; the message says what is missing."""


@dataclass(frozen=True)
class Member:
    """One volume of a set: its image, its label map, and the label values of its objects by name."""

    image: Path
    label: Path
    objects: Mapping[str, int]
    intensity: IntensitySettings = field(default_factory=IntensitySettings)


@dataclass(frozen=True, eq=False)
class Target:
    """One object in one slice: `plane` (n_u, n_v) float32 in 0..255, `truth` (n_u, n_v) bool.

    `row` is the slice's place among the planes of its volume; `spacing_uv` in mm.
    """

    name: str
    row: int
    plane: NDArray[np.float32]
    truth: NDArray[np.bool_]
    spacing_uv: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices (B, n_u, n_v) of one volume that show an object, float32 in 0..255, and what is to be found."""

    planes: NDArray[np.float32]
    geometry: PlaneGeometry
    targets: Sequence[Target]


def paired(folder: Path, wanted: int | None = None) -> list[Member]:
    """Images with labels of the same name, all labels as one structure; `wanted` of them, evenly spaced by name."""
    try:
        images, labels = find_cases(folder / "images"), find_cases(folder / "labels")
    except NotFoundError as error:
        raise MissingSetError(f"{folder}: no images/ and labels/ with volumes ({error})") from error
    cases = [case for case in images if case in labels]
    if wanted is not None and len(cases) < wanted:
        raise MissingSetError(f"{folder}: {len(cases)} images with a label, not {wanted}")
    return [
        Member(images[case], labels[case], {"object": ANYTHING})
        for case in evenly(cases, wanted or len(cases))
    ]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of `items`, or all of fewer, at equal distances and in their order."""
    if count >= len(items):
        return list(items)
    return [items[int((index + 0.5) * len(items) / count)] for index in range(count)]


def hippocampus(data: Path) -> list[Member]:
    """Anterior and posterior part as one structure."""
    return paired(data / "hippocampus_mr", HIPPOCAMPUS_CASES)


def cardiac(data: Path) -> list[Member]:
    """The left ventricle in both phases of every patient."""
    return paired(data / "cardiac_lv_mr")


def abdomen(data: Path) -> list[Member]:
    """Some organs and every vertebra of one CT; the labels are a machine's."""
    folder = data / "abdomen_ct"
    image, label = folder / "example_ct.nii.gz", folder / "example_seg_fast_force_split.nii.gz"
    names = folder / "class_map.json"
    require(image, label, names)
    values = {name: int(value) for value, name in json.loads(names.read_text())["total"].items()}
    chosen = [*CT_ORGANS, *(name for name in values if name.startswith(VERTEBRA))]
    window = IntensitySettings(kind="window", window_hu=CT_WINDOW_HU)
    return [Member(image, label, {name: values[name] for name in chosen}, window)]


def tumour(data: Path) -> list[Member]:
    """Two brains and a breast.

    Not the phantom: its labels are bands of intensity, which the rim of one bright body and the corners of the
    image share, and it has as many slices as all the tumours.
    """
    folder = data / "tumour_nrrd"
    pairs = [
        (folder / f"{name}_image.nrrd", folder / f"{name}_label.nrrd")
        for name in ("brain1", "brain2", "breast1")
    ]
    require(*(path for pair in pairs for path in pair))
    return [Member(image, label, {"tumour": 1}) for image, label in pairs]


def spine(data: Path) -> list[Member]:
    """The cord in T1, T2 and T2*. Not the image with a lesion painted into it."""
    folder = data / "spine_mr_oriented"
    files = (("t1/t1w", "t1/t1w_seg-manual"), ("t2/t2", "t2/t2_seg-manual"), ("t2s/t2s", "t2s/t2s_seg"))
    pairs = [(folder / f"{image}.nii.gz", folder / f"{label}.nii.gz") for image, label in files]
    require(*(path for pair in pairs for path in pair))
    return [Member(image, label, {"cord": ANYTHING}) for image, label in pairs]


SETS: dict[str, Callable[[Path], list[Member]]] = {
    "cardiac_lv_mr": cardiac,
    "hippocampus_mr": hippocampus,
    "abdomen_ct": abdomen,
    "tumour_nrrd": tumour,
    "spine_mr_oriented": spine,
}


def require(*paths: Path) -> None:
    """Raises MissingSetError naming the files that are not there."""
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        raise MissingSetError(f"no such file: {', '.join(absent)}")


def load_slices(member: Member, image_size: int, mask_size: int) -> Slices:
    """Reads one volume, with intensities in the model's range, and keeps the slices that show enough of an object.

    `image_size` and `mask_size` are the model's, in pixels.
    """
    volume, labelled = load_volume(member.image), load_volume(member.label)
    if labelled.shape_ijk != volume.shape_ijk or not np.allclose(labelled.affine, volume.affine, atol=1e-3):
        raise MissingSetError(f"{member.label}: is not on the grid of {member.image}")
    axis = slice_axis(volume.spacing_mm)
    geometry = plane_geometry(volume.shape_ijk, volume.spacing_mm, axis, image_size, mask_size)
    label = take_planes(labelled.array, axis, range(volume.shape_ijk[axis]))
    shown = objects_in_slices(label, member.objects)
    indices = sorted({index for _, index, _ in shown})
    planes = take_planes(to_model_range(volume.array, member.intensity), axis, indices)
    targets = []
    for name, index, truth in shown:
        row = indices.index(index)
        where = f"{member.image.name} {name} {index}"
        targets.append(Target(where, row, planes[row], truth, geometry.spacing_uv))
    return Slices(planes, geometry, targets)


def objects_in_slices(
    label: NDArray[np.generic], objects: Mapping[str, int]
) -> list[tuple[str, int, NDArray[np.bool_]]]:
    """From a label map (B, n_u, n_v): (name, slice, mask (n_u, n_v)) wherever an object is large enough."""
    found = []
    for name, value in objects.items():
        masks = label != 0 if value == ANYTHING else label == value
        areas = masks.sum(axis=(1, 2))
        found += [(name, int(index), masks[index]) for index in np.flatnonzero(areas >= SMALLEST_OBJECT)]
    return found
