"""Masks of slices, at the model's resolution, brought to the voxels of the volume."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.embeddings import VolumeEmbeddings
from lib.prompts.slice_plan import EdgesUV, SlicePlan
from lib.propagation import PlaneMask
from lib.transforms.geometry import MASK_LOGIT, PlaneGeometry, put_planes

MaskArray = NDArray[np.uint8]
Planes = Mapping[int, PlaneMask]

# Slices brought back to voxels at once; bounds the memory for bases with large inputs.
VOXEL_BATCH = 16


def mask_to_voxels(found: Planes, embeddings: VolumeEmbeddings, plan: SlicePlan) -> MaskArray:
    """The masks of slices -> (i, j, k) uint8, 0 or 1, on the volume's grid; slices without one are empty."""
    return labels_to_voxels([(found, plan)], embeddings)


def labels_to_voxels(found: Sequence[tuple[Planes, SlicePlan]], embeddings: VolumeEmbeddings) -> MaskArray:
    """Masks of several labels -> (i, j, k) uint8 on the volume's grid: 1 for the first label, 2 for the second, ...

    A voxel that several claim goes to the one with the largest logit, the first of equal ones.
    """
    # i fastest, as files have it: reordering millions of voxels takes longer than all else here.
    mask = np.zeros(embeddings.volume.shape_ijk, dtype=np.uint8, order="F")
    indices = sorted({index for planes, _ in found for index in planes})
    for start in range(0, len(indices), VOXEL_BATCH):
        batch = indices[start : start + VOXEL_BATCH]
        values = torch.zeros(len(batch), *embeddings.geometry.size_uv, dtype=torch.uint8)
        best = torch.zeros(values.shape)
        for value, (planes, plan) in enumerate(found, start=1):
            logits = _voxel_logits(planes, plan, batch, embeddings.geometry)
            claimed = logits > best
            values[claimed] = value
            best = torch.maximum(best, logits)
        put_planes(mask, values.numpy(), embeddings.axis, batch)
    return mask


def _voxel_logits(planes: Planes, plan: SlicePlan, batch: Sequence[int], geometry: PlaneGeometry) -> Tensor:
    """(B, n_u, n_v): logits of the slices `batch`, below 0 where there is no mask and outside the windows."""
    logits = torch.full((len(batch), *geometry.size_uv), -MASK_LOGIT)
    known = [row for row, index in enumerate(batch) if index in planes and planes[index].given is None]
    if known:
        logits[known] = geometry.logits_to_voxels(torch.stack([planes[batch[row]].logits for row in known]))
    for row, index in enumerate(batch):
        given = planes[index].given if index in planes else None
        if given is not None:
            logits[row] = torch.from_numpy(np.where(given, MASK_LOGIT, -MASK_LOGIT).astype(np.float32))
        if index in plan.windows:
            _crop(logits[row], plan.windows[index])
        for u, v, label in plan.prompts[index].points if index in plan.prompts else ():
            # Two clicks closer than a pixel of the mask cannot both be honoured there; here they can.
            if (logits[row, u, v] > 0) != bool(label):
                logits[row, u, v] = MASK_LOGIT if label else -MASK_LOGIT
    return logits


def _crop(plane: Tensor, window: EdgesUV) -> None:
    """Empties `plane` (n_u, n_v) outside `window`, in place."""
    u0, v0, u1, v1 = window
    plane[:u0] = plane[u1:] = -MASK_LOGIT
    plane[:, :v0] = plane[:, v1:] = -MASK_LOGIT
