"""SAM's image encoder with Med-SA's adapters beside its frozen blocks.

Source: Wu et al., arXiv 2304.12620 v7: a space adapter after the attention of each block, before the residual add; in
3D a depth branch beside it (SD-Trans), with its own adapter; and a scaled adapter parallel to the MLP.

Precision: what is frozen says it by the dtype of its matrices, float32 or bfloat16 (`to_bfloat16`). The sum that runs
from block to block, the norms and the adapters' weights are float32 in both.
"""

from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lib.model.adapters import MLP_SCALE, Adapter
from lib.model.attention import attend
from lib.model.depth import Slabs, attend_depth

RunBlock = Callable[[Block, Tensor, Any, Slabs | None], Tensor]


class BlockAdapters(nn.Module):
    """The adapters of one encoder block; with `depth` above 1 also those of its depth branch."""

    def __init__(self, channels: int, heads: int, width: int, depth: int) -> None:
        super().__init__()
        self.space = Adapter(channels, width)
        self.mlp = Adapter(channels, width)
        if depth > 1:
            self.depth = Adapter(channels, width)
            self.relative_depth = nn.Parameter(torch.zeros(2 * depth - 1, channels // heads))


def encode(
    encoder: ImageEncoderViT,
    pixels: Tensor,
    adapters: nn.ModuleList | None,
    slabs: Slabs | None = None,
    *,
    recompute: bool = False,
    run: RunBlock | None = None,
) -> Tensor:
    """Normalised pixels (B, 3, S, S) -> embeddings (B, 256, g, g) float32.

    `adapters` holds one BlockAdapters a block; `slabs` says which slices see each other, None that none do. With
    `recompute` the activations inside a block are computed again in the backward pass instead of being kept. `run` is
    what a block is run with: `run_block`, or that compiled.
    """
    run = run or run_block
    x = encoder.patch_embed(pixels.to(encoder.patch_embed.proj.weight.dtype))
    # The convolution leaves channels apart in memory; every layer from here on wants them side by side.
    x = x.float().contiguous()
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for index, block in enumerate(encoder.blocks):
        beside = adapters[index] if adapters is not None else None
        if recompute and torch.is_grad_enabled():
            x = checkpoint(run, block, x, beside, slabs, use_reentrant=False, preserve_rng_state=False)
        else:
            x = run(block, x, beside, slabs)
    return _neck(encoder.neck, x.permute(0, 3, 1, 2))


def to_bfloat16(encoder: ImageEncoderViT) -> None:
    """Rounds the frozen matrices and kernels, once; norms and position tables stay float32."""
    for module in encoder.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(torch.bfloat16)


def run_block(block: Block, x: Tensor, adapters: Any, slabs: Slabs | None) -> Tensor:
    """x is (B, H, W, C); `adapters` are the block's BlockAdapters or None (any: torch types submodules so)."""
    qkv = _qkv(block, x)
    attended = _frozen(block.attn.proj, _attend_space(block, qkv))
    x = x + attended
    if adapters is not None:
        x = x + adapters.space(attended)
        if slabs is not None:
            x = x + _look_along_depth(block, qkv, adapters, slabs)
    normed = block.norm2(x).to(block.mlp.lin1.weight.dtype)
    x = x + _frozen(block.mlp.lin2, block.mlp.act(_frozen(block.mlp.lin1, normed)))
    if adapters is not None:
        x = x + MLP_SCALE * adapters.mlp(normed)
    return x


def _qkv(block: Block, x: Tensor) -> Tensor:
    """(B, H, W, 3C) of the normed tokens: computed once, for the attention in space and that in depth."""
    return _frozen(block.attn.qkv, block.norm1(x))


def _attend_space(block: Block, qkv: Tensor) -> Tensor:
    """(B, H, W, 3C) -> (B, H, W, C), in windows where the block has them."""
    if block.window_size == 0:
        return _attend_grid(block, qkv)
    size = (qkv.shape[1], qkv.shape[2])
    windows, padded = window_partition(_pad(qkv, block), block.window_size)
    return window_unpartition(_attend_grid(block, windows), block.window_size, padded, size)


def _pad(qkv: Tensor, block: Block) -> Tensor:
    """Up to whole windows. SAM pads the normed tokens with zeros, of which q, k and v are the layer's bias."""
    below, right = -qkv.shape[1] % block.window_size, -qkv.shape[2] % block.window_size
    if below == 0 and right == 0:
        return qkv
    count, rows, columns, channels = qkv.shape
    filling = block.attn.qkv.bias.to(qkv.dtype)
    padded = filling.expand(count, rows + below, columns + right, channels).clone()
    padded[:, :rows, :columns] = qkv
    return padded


def _attend_grid(block: Block, qkv: Tensor) -> Tensor:
    """(B, H, W, 3C) -> (B, H, W, C): attention among all H x W tokens."""
    attention, grid = block.attn, (qkv.shape[1], qkv.shape[2])
    q, k, v = _heads(qkv, attention.num_heads).permute(2, 0, 3, 1, 4)
    attended = attend(q, k, v, attention.rel_pos_h, attention.rel_pos_w, grid)
    return attended.transpose(1, 2).flatten(2).unflatten(1, grid)


def _look_along_depth(block: Block, qkv: Tensor, adapters: Any, slabs: Slabs) -> Tensor:
    """What the depth branch adds, (B, H, W, C): on the whole map, never in windows.

    A slice that is alone sees nothing new: it gets nothing added, as in the 2D model.
    """
    q, k, v = _heads(qkv, block.attn.num_heads).unbind(2)
    attended = attend_depth(q, k, v, adapters.relative_depth, slabs)
    added = adapters.depth.after(block.attn.proj, attended).unflatten(1, qkv.shape[1:3])
    if slabs.accompanied is None:
        return added
    return added * slabs.accompanied.view(-1, 1, 1, 1)


def _heads(qkv: Tensor, heads: int) -> Tensor:
    """(B, H, W, 3C) -> (B, H * W, 3, heads, d)."""
    return qkv.flatten(1, 2).unflatten(2, (3, heads, -1))


def _frozen(layer: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def _neck(neck: Any, x: Tensor) -> Tensor:
    """SAM's two convolutions, each with a norm after it; the norms in float32."""
    narrow, first_norm, wide, second_norm = neck
    x = first_norm(narrow(x.to(narrow.weight.dtype)).float())
    return second_norm(wide(x.to(wide.weight.dtype)).float())
