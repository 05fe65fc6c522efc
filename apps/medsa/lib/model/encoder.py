"""SAM's image encoder with Med-SA's adapters beside its frozen blocks.

Source: Wu et al., arXiv 2304.12620 v7: a space adapter after the attention of each block, before the residual add, and
a scaled adapter parallel to its MLP.
"""

from typing import Any

from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor, nn

from lib.model.adapters import MLP_SCALE, Adapter


class BlockAdapters(nn.Module):
    """The adapters of one encoder block."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.space = Adapter(channels, width)
        self.mlp = Adapter(channels, width)


def encode(encoder: ImageEncoderViT, pixels: Tensor, adapters: nn.ModuleList | None) -> Tensor:
    """Normalised pixels (B, 3, S, S) -> embeddings (B, 256, g, g); `adapters` holds one BlockAdapters a block."""
    x = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for index, block in enumerate(encoder.blocks):
        x = _run_block(block, x, adapters[index] if adapters is not None else None)
    return encoder.neck(x.permute(0, 3, 1, 2))


def _run_block(block: Block, x: Tensor, adapters: Any) -> Tensor:
    """x is (B, H, W, C); `adapters` are the block's BlockAdapters or None (any: torch types submodules so)."""
    attended = _attend(block, block.norm1(x))
    x = x + attended
    if adapters is not None:
        x = x + adapters.space(attended)
    normed = block.norm2(x)
    x = x + block.mlp(normed)
    if adapters is not None:
        x = x + MLP_SCALE * adapters.mlp(normed)
    return x


def _attend(block: Block, x: Tensor) -> Tensor:
    if block.window_size == 0:
        return block.attn(x)
    size = (x.shape[1], x.shape[2])
    windows, padded = window_partition(x, block.window_size)
    return window_unpartition(block.attn(windows), block.window_size, padded, size)
