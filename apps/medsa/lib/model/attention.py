"""Attention over the tokens of a grid with SAM's decomposed relative position, without keeping what is not needed.

SAM (Kirillov et al., arXiv 2304.02643, after Li et al., MViTv2, arXiv 2112.01526) adds to the score of query (r, c) and
key (r', c') the products of the query with a row table at r - r' and a column table at c - c'. The package
segment_anything writes that bias out for all pairs and all heads at once: 800 MB a layer for vit_b at 1024 pixels.
Here are three ways to the same numbers; `attend` takes the one that suits device, precision and size.

Shapes: q, k, v (B, heads, N, d) with N = rows x columns, row by row. Tables (2 * rows - 1, d) and (2 * columns - 1, d).
"""

import torch
from torch import Tensor
from torch.nn import functional

# Up to so many tokens the bias of all pairs is small, and one call for all heads is the quickest on a CPU.
BIASED_TOKENS = 1024
# Scores that `blockwise` holds at once, chosen for a CPU's shared cache: more are slower, fewer make thin products.
BLOCK_SCORES = 1 << 21


def attend(
    q: Tensor, k: Tensor, v: Tensor, row_table: Tensor, column_table: Tensor, grid: tuple[int, int]
) -> Tensor:
    """softmax(q k^T / sqrt(d) + relative position) v, (B, heads, N, d), on a grid of (rows, columns)."""
    to_rows, to_columns = relative_scores(q, row_table, column_table, grid)
    if q.device.type != "cpu":
        return folded(q, k, v, to_rows, to_columns)
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or v.requires_grad)
    if q.shape[2] > BIASED_TOKENS:
        return (folded if needs_grad else blockwise)(q, k, v, to_rows, to_columns)
    if q.dtype == torch.bfloat16:  # there wider products cost less than another pass over all scores
        return folded(q, k, v, to_rows, to_columns, fused=False)
    return biased(q, k, v, to_rows, to_columns)


def relative_scores(
    q: Tensor, row_table: Tensor, column_table: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """What each query adds for a key in each row (B, heads, N, rows), and in each column (B, heads, N, columns)."""
    placed = q.unflatten(2, grid)
    by_row = _all_pairs(row_table, grid[0]).to(q.dtype)
    by_column = _all_pairs(column_table, grid[1]).to(q.dtype)
    to_rows = torch.einsum("bhrcd,rkd->bhrck", placed, by_row)
    to_columns = torch.einsum("bhrcd,ckd->bhrck", placed, by_column)
    return to_rows.flatten(2, 3), to_columns.flatten(2, 3)


def biased(q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_columns: Tensor) -> Tensor:
    """The bias of all pairs in memory. For windows and small grids; differentiable."""
    bias = to_rows.unsqueeze(-1) + to_columns.unsqueeze(-2)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(3))


def folded(
    q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_columns: Tensor, *, fused: bool = True
) -> Tensor:
    """No bias at all: queries carry their relative scores as further channels, keys say where they are in one-hot.

    Any fused attention kernel then does the whole of it, forwards and backwards, with memory linear in N. v is
    padded because those kernels want one width for all three. Not `fused`, the scores of all pairs are in memory.
    """
    channels, rows, columns = q.shape[-1], to_rows.shape[-1], to_columns.shape[-1]
    places = torch.cat([_one_hot(rows, columns, 0, k), _one_hot(rows, columns, 1, k)], dim=-1)
    padding = -(channels + rows + columns) % 8
    queries = functional.pad(torch.cat([q * channels**-0.5, to_rows, to_columns], dim=-1), (0, padding))
    keys = functional.pad(torch.cat([k, places.expand(*k.shape[:2], -1, -1)], dim=-1), (0, padding))
    if not fused:
        return (queries @ keys.transpose(-1, -2)).softmax(dim=-1) @ v
    values = functional.pad(v, (0, queries.shape[-1] - channels))
    return functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :channels]


# A compiler would unroll the loops, for minutes and for nothing.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def blockwise(q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_columns: Tensor) -> Tensor:
    """Some queries of one head at a time, in one buffer that stays in the cache. Not differentiable."""
    tokens, rows, columns = q.shape[2], to_rows.shape[-1], to_columns.shape[-1]
    step = max(1, BLOCK_SCORES // tokens)
    result = torch.empty_like(q, memory_format=torch.contiguous_format)
    buffer = q.new_empty(min(step, tokens), tokens)
    for image in range(q.shape[0]):
        for head in range(q.shape[1]):
            # Side by side in memory, once a head: they are read again for every block.
            queries, values = q[image, head].contiguous(), v[image, head].contiguous()
            keys = (k[image, head] * q.shape[-1] ** -0.5).T
            for start in range(0, tokens, step):
                block = slice(start, min(start + step, tokens))
                scores = buffer[: block.stop - start]
                place = scores.unflatten(1, (rows, columns))
                by_row, by_column = to_rows[image, head, block], to_columns[image, head, block]
                torch.add(by_row.unsqueeze(2), by_column.unsqueeze(1), out=place)
                scores.addmm_(queries[block], keys)
                torch.softmax(scores, dim=-1, out=scores)
                torch.mm(scores, values, out=result[image, head, block])
    return result


def _all_pairs(table: Tensor, count: int) -> Tensor:
    """(2 * count - 1, d), by distance -> (count, count, d), by query and key."""
    places = torch.arange(count, device=table.device)
    return table[places[:, None] - places[None, :] + count - 1]


def _one_hot(rows: int, columns: int, axis: int, like: Tensor) -> Tensor:
    """(rows * columns, rows or columns): which row (axis 0) or column (axis 1) each token is in."""
    count = (rows, columns)[axis]
    shape = [1, 1, count]
    shape[axis] = count
    eye = torch.eye(count, dtype=like.dtype, device=like.device)
    return eye.view(*shape).expand(rows, columns, count).flatten(0, 1)
