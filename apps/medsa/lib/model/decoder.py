"""SAM's prompt encoder and mask decoder, one embedding per prompt, with Med-SA's adapters.

Source: Wu et al., arXiv 2304.12620 v7: three adapters in each two-way block (HyP-Adpt, or another arm of the paper's
ablation, after the tokens have looked at the image; one parallel to the MLP; one on the image tokens).
"""

import copy
from typing import Any, cast

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from lib.model.adapters import MLP_SCALE, Adapter, AdapterDims, prompt_adapter

# Up to so many tokens it is cheaper to bring their side of an attention to the image's channels than the image's to
# the attention's. On two cores with maps of 1024: 7 tokens 0.6 to 0.8 of the time, 14 tokens 0.8 to 0.9.
FEW_TOKENS = 16
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


def rounded_to_bfloat16(decoder: MaskDecoder) -> MaskDecoder:
    """A copy whose matrices and kernels are rounded, as autocast would do again in every call; norms stay float32."""
    rounded = copy.deepcopy(decoder).requires_grad_(False)
    for module in rounded.modules():
        if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
            module.to(torch.bfloat16)
    return rounded


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
    # Rounded here, the image's tokens stay so to the end: sums and norms of them took as long as the products.
    image, positions = _rounded(embeddings + dense), _rounded(positions)
    height, width = image.shape[2:]
    # Channels last in memory too, once: all that follows works on channels.
    image_tokens, places = image.flatten(2).mT.contiguous(), positions.flatten(2).mT.contiguous()
    queries, keys = _two_way(decoder, image_tokens, places, tokens, adapters)
    weights = torch.stack(
        [mlp(queries[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    logits = _mask_logits(decoder, keys, weights, (height, width))
    return logits, decoder.iou_prediction_head(queries[:, 0])


def _mask_logits(decoder: MaskDecoder, keys: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Image tokens (P, g*g, 256) upscaled twice and weighed by (P, 4, 32) -> (P, 4, 4g, 4g).

    SAM's own layers, channels last: a transposed convolution without overlap is a product that makes four places of
    one, and norm and weights work on the channels. The places are put in order once, at the end.
    """
    widen, norm, act, widen_again, act_again = decoder.output_upscaling
    x = _four_of_one(widen, keys)
    x = act(functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    x = act_again(_four_of_one(widen_again, x)) @ weights.mT
    height, width = grid
    places = x.view(len(x), height, width, 2, 2, 2, 2, -1)  # rows, columns, their halves, their quarters
    return places.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(x), -1, 4 * height, 4 * width)


def _four_of_one(widen: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Places (P, n, c) -> (P, 4n, c'): the two in the upper row, then the two in the lower one."""
    kernel = widen.weight.permute(2, 3, 1, 0)
    bias = cast(Tensor, widen.bias).repeat(4)
    return functional.linear(x, kernel.flatten(0, 2), bias).view(len(x), -1, widen.out_channels)


def _two_way(
    decoder: MaskDecoder, keys: Tensor, key_positions: Tensor, tokens: Tensor, adapters: nn.ModuleList | None
) -> tuple[Tensor, Tensor]:
    transformer, queries = decoder.transformer, tokens
    for index, layer in enumerate(transformer.layers):
        beside = adapters[index] if adapters is not None else None
        queries, keys = _two_way_block(layer, queries, keys, tokens, key_positions, beside)
    placed_keys = _rounded(keys + key_positions)
    attended = _tokens_to_image(
        transformer.final_attn_token_to_image, queries + tokens, placed_keys, _rounded(keys)
    )
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
    queries = queries + _tokens_to_image(
        layer.cross_attn_token_to_image, queries + prompt, placed_keys, _rounded(keys)
    )
    if adapters is not None:
        queries = queries + adapters.prompt(queries, prompt)
    queries = layer.norm2(queries)

    mixed = queries + layer.mlp(queries)
    if adapters is not None:
        mixed = mixed + MLP_SCALE * adapters.mlp(queries)
    queries = layer.norm3(mixed)

    keys = keys + _image_to_tokens(layer.cross_attn_image_to_token, placed_keys, queries + prompt, queries)
    if adapters is not None:
        keys = keys + adapters.image(keys)
    return queries, layer.norm4(keys)


def _is_plain(tokens: Tensor) -> bool:
    """Whether an attention with `tokens` (P, T, 256) is left to SAM's own layer.

    Learning is: there the other way gained nothing in bfloat16, and one bias would get no gradient.
    """
    return torch.is_grad_enabled() or tokens.shape[1] > FEW_TOKENS


def _tokens_to_image(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` from tokens q (P, T, 256) to an image k, v (P, N, 256).

    (q Wq)(k Wk)' is ((q Wq) Wk') k', and softmax(.) (v Wv) is (softmax(.) v) Wv: the N places of the image are not
    projected. What the bias of k adds is the same for all places, so that softmax does not see it.
    """
    if _is_plain(q):
        return attention(q=q, k=k, v=v)
    heads = (attention.num_heads, attention.internal_dim // attention.num_heads)
    own = attention.q_proj(q).unflatten(-1, heads) * heads[1] ** -0.5
    asked = torch.einsum("pthd,hdc->phtc", own, attention.k_proj.weight.unflatten(0, heads))
    shares = (asked.flatten(1, 2) @ k.mT).softmax(-1)
    seen = (shares @ v).unflatten(1, asked.shape[1:3])
    values = torch.einsum("phtc,hdc->pthd", seen, attention.v_proj.weight.unflatten(0, heads))
    return attention.out_proj(values.flatten(2) + attention.v_proj.bias)


def _image_to_tokens(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` from an image q (P, N, 256) to tokens k, v (P, T, 256), in the same way."""
    if _is_plain(k):
        return attention(q=q, k=k, v=v)
    heads = (attention.num_heads, attention.internal_dim // attention.num_heads)
    own = attention.k_proj(k).unflatten(-1, heads) * heads[1] ** -0.5
    asked = torch.einsum("pthd,hdc->pcth", own, attention.q_proj.weight.unflatten(0, heads))
    bias = torch.einsum("pthd,hd->pth", own, attention.q_proj.bias.unflatten(0, heads))
    scores = q @ asked.flatten(2) + bias.flatten(1).unsqueeze(1)
    # Heads last: softmax over the tokens then works on eight numbers side by side.
    shares = scores.unflatten(-1, asked.shape[2:]).softmax(-2).flatten(2)
    offered = attention.v_proj(v).unflatten(-1, heads)
    values = torch.einsum("pthd,chd->pthc", offered, attention.out_proj.weight.unflatten(1, heads))
    return shares @ values.flatten(1, 2) + attention.out_proj.bias
