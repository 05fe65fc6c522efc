"""Three ways to one result: SAM's attention with decomposed relative position."""

from collections.abc import Callable

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor

from lib.model import attention

HEADS, CHANNELS = 3, 8
WAYS: dict[str, Callable[..., Tensor]] = {
    "biased": attention.biased,
    "folded": attention.folded,
    "folded, not fused": lambda *parts: attention.folded(*parts, fused=False),
    "blockwise": attention.blockwise,
}


def inputs(grid: tuple[int, int], batch: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    tokens = grid[0] * grid[1]
    q, k, v = torch.randn(3, batch, HEADS, tokens, CHANNELS)
    return q, k, v, torch.randn(2 * grid[0] - 1, CHANNELS), torch.randn(2 * grid[1] - 1, CHANNELS)


def by_hand(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """One query, one key at a time, (N, d) of one image and one head."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    result = []
    for query, (row, column) in zip(q, places, strict=True):
        scores = []
        for key, (key_row, key_column) in zip(k, places, strict=True):
            by_row = query @ rows[row - key_row + grid[0] - 1]
            by_column = query @ columns[column - key_column + grid[1] - 1]
            scores.append(query @ key / CHANNELS**0.5 + by_row + by_column)
        result.append(torch.stack(scores).softmax(0) @ v)
    return torch.stack(result)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 2)])
def test_each_way_is_the_formula(way: str, grid: tuple[int, int]) -> None:
    q, k, v, rows, columns = inputs(grid)
    to_rows, to_columns = attention.relative_scores(q, rows, columns, grid)
    found = WAYS[way](q, k, v, to_rows, to_columns)
    for image in range(2):
        for head in range(HEADS):
            expected = by_hand(q[image, head], k[image, head], v[image, head], rows, columns, grid)
            torch.testing.assert_close(found[image, head], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["biased", "folded", "folded, not fused"])
def test_the_ways_that_train_have_the_same_gradients(way: str) -> None:
    def gradients(run: Callable[..., Tensor]) -> list[Tensor]:
        tensors = [tensor.requires_grad_() for tensor in inputs((3, 4))]
        to_rows, to_columns = attention.relative_scores(tensors[0], *tensors[3:], (3, 4))
        run(*tensors[:3], to_rows, to_columns).square().sum().backward()
        return [tensor.grad for tensor in tensors if tensor.grad is not None]

    expected, found = gradients(attention.biased), gradients(WAYS[way])
    assert len(found) == 5
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_blocks_that_do_not_divide_the_tokens_leave_none_out(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = (5, 7)
    q, k, v, rows, columns = inputs(grid)
    scores = attention.relative_scores(q, rows, columns, grid)
    whole = attention.blockwise(q, k, v, *scores)
    monkeypatch.setattr(attention, "BLOCK_SCORES", 4 * 35)
    torch.testing.assert_close(attention.blockwise(q, k, v, *scores), whole)


@torch.no_grad()
def test_a_large_grid_is_segment_anythings_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size where the bias of all pairs is never made."""
    monkeypatch.setattr(attention, "biased", None)
    grid = (40, 36)
    theirs = Attention(24, num_heads=HEADS, use_rel_pos=True, input_size=grid)
    torch.nn.init.normal_(theirs.rel_pos_h)
    torch.nn.init.normal_(theirs.rel_pos_w)
    x = torch.randn(1, *grid, 24)
    q, k, v = theirs.qkv(x).reshape(1, grid[0] * grid[1], 3, HEADS, 8).permute(2, 0, 3, 1, 4)
    ours = attention.attend(q, k, v, theirs.rel_pos_h, theirs.rel_pos_w, grid)
    projected = theirs.proj(ours.transpose(1, 2).reshape(1, *grid, 24))
    torch.testing.assert_close(projected, theirs(x), rtol=1e-5, atol=1e-5)


def test_large_grids_can_be_trained_too() -> None:
    grid = (33, 32)
    q, k, v, rows, columns = (tensor.requires_grad_() for tensor in inputs(grid, batch=1))
    attention.attend(q, k, v, rows, columns, grid).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (q, k, v))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (34, 34)])
def test_bfloat16_is_near_float32(grid: tuple[int, int]) -> None:
    q, k, v, rows, columns = inputs(grid, batch=1)
    # Scores of the size that trained networks have.
    rows, columns, q = 0.1 * rows, 0.1 * columns, 0.5 * q
    exact = attention.attend(q, k, v, rows, columns, grid)
    rounded = attention.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), rows, columns, grid)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.03 * exact.abs().max()
