"""SAM's prompt encoder and mask decoder, one embedding per prompt, with Med-SA's adapters.

Source: Wu et al., arXiv 2304.12620 v7: three adapters in each two-way block (HyP-Adpt, or another arm of the paper's
ablation, after the tokens have looked at the image; one parallel to the MLP; one on the image tokens).
"""

from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor, nn

from lib.model.adapters import MLP_SCALE, Adapter, AdapterDims, prompt_adapter

PADDING, NEGATIVE, POSITIVE, BOX_START, BOX_STOP = -1, 0, 1, 2, 3


class TwoWayAdapters(nn.Module):
    """The adapters of one two-way block of the decoder."""

    def __init__(self, channels: int, dims: AdapterDims) -> None:
        super().__init__()
        self.prompt = prompt_adapter(channels, dims)
        self.mlp = Adapter(channels, dims.decoder_width)
        self.image = Adapter(channels, dims.decoder_width)


def embed_points(encoder: PromptEncoder, points_xy: Tensor, labels: Tensor) -> Tensor:
    """Points (P, N, 2) in model pixels with their labels (P, N) -> tokens (P, N, 256).

    Box corners are points with labels 2 and 3, as in SAM; -1 is SAM's own padding token.
    """
    # Never in bfloat16: it would move a click by a third of a pixel.
    with torch.autocast(points_xy.device.type, enabled=False):
        tokens = encoder.pe_layer.forward_with_coords(points_xy + 0.5, encoder.input_image_size)
    padding = (labels == PADDING).unsqueeze(-1)
    tokens = torch.where(padding, torch.zeros_like(tokens), tokens)
    # Row 0 of the table is the padding's own embedding, rows 1 to 4 those of the four kinds of points.
    table = torch.cat(
        [encoder.not_a_point_embed.weight, *[kind.weight for kind in encoder.point_embeddings]], dim=0
    )
    return tokens + table[labels + 1]


def embed_masks(encoder: PromptEncoder, masks: Tensor | None, has_mask: Tensor | None, count: int) -> Tensor:
    """Mask logits (P, 1, m, m), used where `has_mask` (P,) -> dense prompts (P, 256, g, g)."""
    height, width = encoder.image_embedding_size
    none = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, height, width)
    if masks is None:
        return none
    dense = encoder.mask_downscaling(masks)
    if has_mask is None:
        return dense
    return torch.where(has_mask.view(-1, 1, 1, 1), dense, none.to(dense.dtype))


def decode(
    decoder: MaskDecoder,
    embeddings: Tensor,
    positions: Tensor,
    tokens: Tensor,
    dense: Tensor,
    adapters: nn.ModuleList | None,
) -> tuple[Tensor, Tensor]:
    """One mask set per prompt: logits (P, 4, 4g, 4g) and predicted IoU (P, 4).

    `embeddings` and `dense` are (P, 256, g, g), `positions` (1, 256, g, g), `tokens` (P, N, 256).
    """
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight], dim=0)
    tokens = torch.cat([own.unsqueeze(0).expand(tokens.shape[0], -1, -1), tokens], dim=1)
    image = embeddings + dense
    count, channels, height, width = image.shape
    queries, keys = _two_way(decoder, image.flatten(2).mT, positions.flatten(2).mT, tokens, adapters)
    upscaled = decoder.output_upscaling(keys.mT.reshape(count, channels, height, width))
    weights = torch.stack(
        [mlp(queries[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    return logits, decoder.iou_prediction_head(queries[:, 0])


def _two_way(
    decoder: MaskDecoder, keys: Tensor, key_positions: Tensor, tokens: Tensor, adapters: nn.ModuleList | None
) -> tuple[Tensor, Tensor]:
    transformer, queries = decoder.transformer, tokens
    for index, layer in enumerate(transformer.layers):
        beside = adapters[index] if adapters is not None else None
        queries, keys = _two_way_block(layer, queries, keys, tokens, key_positions, beside)
    attended = transformer.final_attn_token_to_image(q=queries + tokens, k=keys + key_positions, v=keys)
    return transformer.norm_final_attn(queries + attended), keys


def _rounded(x: Tensor) -> Tensor:
    """`x` as autocast would hand it to every product, rounded once for all of them."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _two_way_block(
    layer: TwoWayAttentionBlock,
    queries: Tensor,
    keys: Tensor,
    prompt: Tensor,
    key_positions: Tensor,
    adapters: Any,
) -> tuple[Tensor, Tensor]:
    """`queries` and `prompt` are (P, T, 256), `keys` and `key_positions` (P or 1, g*g, 256)."""
    if layer.skip_first_layer_pe:
        queries = layer.self_attn(q=queries, k=queries, v=queries)
    else:
        placed = queries + prompt
        queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
    queries = layer.norm1(queries)

    placed_keys = _rounded(keys + key_positions)
    queries = queries + layer.cross_attn_token_to_image(q=queries + prompt, k=placed_keys, v=_rounded(keys))
    if adapters is not None:
        queries = queries + adapters.prompt(queries, prompt)
    queries = layer.norm2(queries)

    mixed = queries + layer.mlp(queries)
    if adapters is not None:
        mixed = mixed + MLP_SCALE * adapters.mlp(queries)
    queries = layer.norm3(mixed)

    keys = keys + layer.cross_attn_image_to_token(q=placed_keys, k=queries + prompt, v=queries)
    if adapters is not None:
        keys = keys + adapters.image(keys)
    return queries, layer.norm4(keys)
