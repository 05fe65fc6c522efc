"""SD-Trans's depth branch: the slices of a slab look at each other, position by position.

Source: Wu et al., *Medical SAM Adapter*, arXiv 2304.12620 v7: the same frozen attention weights, once over the tokens
of a slice and once over the slices at a token. Where slices are is told by a learned table of relative depths, cut off
at its ends as in Shaw et al., *Self-Attention with Relative Position Representations*, arXiv 1803.02155, so that slabs
of any length work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slabs:
    """Which of B slices are seen together: runs of neighbours, one after the other in the batch.

    `source` (V, D) has the batch index of each slice of V slabs, D the longest; `valid` (V, D) is False where it is
    only padding; `home` (B,) is where each slice is in the flattened (V * D); `accompanied` (B,) is False for a slice
    that is alone in its slab. All None where every slab has D slices.
    """

    count: int
    longest: int
    source: Tensor | None = None
    valid: Tensor | None = None
    home: Tensor | None = None
    accompanied: Tensor | None = None

    @classmethod
    def of(cls, depths: Sequence[int], device: torch.device) -> "Slabs":
        """The slabs of these lengths; raises ValueError for a length below 1."""
        if min(depths, default=0) < 1:
            raise ValueError(f"depths {tuple(depths)}: every slab has at least one slice")
        longest = max(depths)
        if min(depths) == longest:
            return cls(len(depths), longest)
        lengths = torch.tensor(depths, device=device)
        steps = torch.arange(longest, device=device)
        valid = steps < lengths[:, None]
        first = lengths.cumsum(0) - lengths
        source = torch.where(valid, first[:, None] + steps, first[:, None])
        accompanied = (lengths > 1).repeat_interleave(lengths)
        return cls(len(depths), longest, source, valid, valid.flatten().nonzero().squeeze(1), accompanied)

    def pack(self, x: Tensor) -> Tensor:
        """(B, ...) -> (V, D, ...); padding repeats the slab's first slice."""
        if self.source is None:
            return x.unflatten(0, (self.count, self.longest))
        return x[self.source]

    def unpack(self, x: Tensor) -> Tensor:
        """(V, D, ...) -> (B, ...), without the padding."""
        flat = x.flatten(0, 1)
        return flat if self.home is None else flat[self.home]


def attend_depth(q: Tensor, k: Tensor, v: Tensor, table: Tensor, slabs: Slabs) -> Tensor:
    """q, k, v (B, N, heads, d) -> (B, N, heads * d): attention over the slices of a slab at each of N positions.

    `table` (2 * depth - 1, d) is added to the scores by relative depth, as SAM does with rows and columns.
    """
    queries, keys, values = (slabs.pack(x).permute(0, 2, 3, 1, 4) for x in (q, k, v))  # (V, N, heads, D, d)
    scores = (queries * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    scores = scores + torch.einsum("vnhid,ijd->vnhij", queries, _relative(table, slabs.longest).to(q.dtype))
    if slabs.valid is not None:
        scores = scores.masked_fill(~slabs.valid[:, None, None, None, :], -torch.inf)
    attended = scores.softmax(dim=-1) @ values
    return slabs.unpack(attended.permute(0, 3, 1, 2, 4).flatten(3))


def _relative(table: Tensor, count: int) -> Tensor:
    """(2 * depth - 1, d) -> (count, count, d) by query and key; what is further apart shares the last entry."""
    reach = table.shape[0] // 2
    places = torch.arange(count, device=table.device)
    return table[(places[:, None] - places[None, :]).clamp(-reach, reach) + reach]
