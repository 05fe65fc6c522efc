"""SD-Trans: what the depth branch computes, and what must not reach it."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn import functional

from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam
from lib.model.depth import Slabs
from lib.model.medsa import MedSA

DIMS = AdapterDims(
    encoder_width=4,
    decoder_width=4,
    hyper_width=4,
    prompt_rank=2,
    hyper_layers=2,
    prompt_arm="hyper",
    depth=3,
)


@pytest.fixture
def spec(tiny_spec: BaseSpec) -> BaseSpec:
    """A window of 3 on a grid of 4: windows are padded."""
    return dataclasses.replace(tiny_spec, window_size=3)


@pytest.fixture
def model(spec: BaseSpec) -> MedSA:
    """Random in every tensor, adapters and relative-depth tables too."""
    return random_model(spec, DIMS)


def random_model(spec: BaseSpec, dims: AdapterDims) -> MedSA:
    torch.manual_seed(0)
    model = MedSA(build_sam(spec), spec, dims, ("organ",)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, parameter in model.adapters.named_parameters():
            parameter.add_((0.5 if "relative" in name else 0.2) * torch.randn_like(parameter))
    model.trained = True
    return model


def some_planes(count: int, seed: int = 1) -> Tensor:
    return 255 * torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def adapted(adapter: nn.Module, x: Tensor) -> Tensor:
    hidden = functional.gelu(functional.linear(x, adapter.down.weight, adapter.down.bias))
    return functional.linear(hidden, adapter.up.weight, adapter.up.bias)


def space(block: Block, x: Tensor) -> Tensor:
    """Attention in space as segment_anything's own block has it, (D, H, W, C)."""
    normed = block.norm1(x)
    if block.window_size == 0:
        return block.attn(normed)
    windows, padded = window_partition(normed, block.window_size)
    return window_unpartition(block.attn(windows), block.window_size, padded, x.shape[1:3])


def depth(block: Block, x: Tensor, table: Tensor) -> Tensor:
    """Attention over the D slices at each position, with its own LN1, q, k, v and projection; nothing is shared."""
    normed, attention = block.norm1(x), block.attn
    slices, rows, columns, channels = x.shape
    width, reach = channels // attention.num_heads, table.shape[0] // 2
    result = torch.empty_like(x)
    for row in range(rows):
        for column in range(columns):
            q, k, v = (
                attention.qkv(normed[:, row, column]).view(slices, 3, attention.num_heads, width).unbind(1)
            )
            heads = []
            for head in range(attention.num_heads):
                scores = torch.empty(slices, slices)
                for i in range(slices):
                    for j in range(slices):
                        place = max(-reach, min(reach, i - j)) + reach
                        scores[i, j] = q[i, head] @ k[j, head] / width**0.5 + q[i, head] @ table[place]
                heads.append(scores.softmax(1) @ v[:, head])
            result[:, row, column] = attention.proj(torch.cat(heads, dim=1))
    return result


def reference(model: MedSA, planes: Tensor) -> Tensor:
    """The encoder as the paper describes it, one volume: two separate attentions, no tricks."""
    encoder = model.sam.image_encoder
    x = encoder.patch_embed((planes - model.sam.pixel_mean) / model.sam.pixel_std) + encoder.pos_embed
    for block, beside in zip(encoder.blocks, model.adapters["encoder"], strict=True):
        in_space = space(block, x)
        update = in_space + adapted(beside.space, in_space)
        if len(planes) > 1:
            update = update + adapted(beside.depth, depth(block, x, beside.relative_depth))
        x = x + update
        normed = block.norm2(x)
        x = x + block.mlp(normed) + 0.5 * adapted(beside.mlp, normed)
    return encoder.neck(x.permute(0, 3, 1, 2))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3, 5])  # the table reaches 2 slices far: at 5 its ends are shared
def test_it_is_the_published_network(model: MedSA, count: int) -> None:
    planes = some_planes(count)
    expected = reference(model, planes)
    found = model.encode(planes, [count])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_the_depth_branch_matters(model: MedSA) -> None:
    planes = some_planes(3)
    assert not torch.allclose(model.encode(planes, [3]), model.encode(planes), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("depths", [(3, 3), (2, 4), (1, 3, 2), (4, 1), (1, 1)])
def test_volumes_of_a_batch_do_not_see_each_other_nor_the_padding(
    model: MedSA, depths: Sequence[int]
) -> None:
    planes = some_planes(sum(depths))
    together = model.encode(planes, depths)
    parts = zip(planes.split(list(depths)), together.split(list(depths)), depths, strict=True)
    for own, found, count in parts:
        torch.testing.assert_close(found, model.encode(own, [count]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_another_volume_in_the_batch_may_be_anything(model: MedSA) -> None:
    first, second, other = some_planes(2), some_planes(3, seed=2), some_planes(3, seed=3)
    one = model.encode(torch.cat([first, second]), [2, 3])
    two = model.encode(torch.cat([first, other]), [2, 3])
    assert torch.equal(one[:2], two[:2])
    assert not torch.allclose(one[2:], two[2:])


@torch.no_grad()
def test_the_order_of_slices_matters_only_through_depth(model: MedSA) -> None:
    planes, order = some_planes(3), [2, 0, 1]
    alone, shuffled_alone = model.encode(planes), model.encode(planes[order])
    torch.testing.assert_close(shuffled_alone, alone[order], rtol=1e-4, atol=1e-5)
    seen, shuffled = model.encode(planes, [3]), model.encode(planes[order], [3])
    assert not torch.allclose(shuffled, seen[order], atol=1e-3)
    for beside in model.adapters["encoder"]:
        beside.relative_depth.zero_()
    seen, shuffled = model.encode(planes, [3]), model.encode(planes[order], [3])
    torch.testing.assert_close(shuffled, seen[order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_single_slice_gets_the_2d_model(model: MedSA) -> None:
    planes = some_planes(1)
    assert torch.equal(model.encode(planes, [1]), model.encode(planes))


@torch.no_grad()
def test_without_training_depth_is_left_out(spec: BaseSpec) -> None:
    model = random_model(spec, DIMS)
    assert model.slab == 3
    model.trained = False
    assert model.slab == 1
    planes = some_planes(3)
    assert torch.equal(model.encode(planes, [3]), model.encode(planes))


@pytest.mark.parametrize(
    ("depths", "text"), [((2, 2), "add up to 4"), ((3, 0), "at least one"), ((5, -2), "-2")]
)
def test_depths_that_make_no_sense_are_refused(model: MedSA, depths: Sequence[int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        model.encode(some_planes(3), depths)


def test_packing_goes_round() -> None:
    slabs = Slabs.of((2, 4, 1), torch.device("cpu"))
    x = torch.arange(7.0).view(7, 1)
    packed = slabs.pack(x)
    assert packed.shape == (3, 4, 1)
    assert packed[1].flatten().tolist() == [2.0, 3.0, 4.0, 5.0]
    assert torch.equal(slabs.unpack(packed), x)
    assert slabs.accompanied is not None
    assert slabs.accompanied.tolist() == [True] * 6 + [False]


@pytest.mark.parametrize("depths", [(3, 2), (4,)])
def test_recomputing_gives_the_same_gradients(model: MedSA, depths: Sequence[int]) -> None:
    planes = some_planes(sum(depths))

    def gradients(recompute: bool) -> dict[str, Tensor]:
        model.checkpointing = recompute
        model.zero_grad()
        model.encode(planes, depths).square().mean().backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in model.adapters["encoder"].named_parameters()
            if parameter.grad is not None
        }

    kept, again = gradients(False), gradients(True)
    assert any("relative_depth" in name for name in kept)
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient)


def test_recomputing_keeps_less(spec: BaseSpec) -> None:
    model = random_model(dataclasses.replace(spec, encoder_depth=12), DIMS)
    kept: list[int] = []
    weights = {parameter.data_ptr() for parameter in model.parameters()}  # they are there in any case

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes if tensor.data_ptr() not in weights else 0
        return tensor

    for recompute in (False, True):
        model.checkpointing = recompute
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.encode(some_planes(3), [3])
    assert kept[1] < 0.5 * kept[0]


def test_everything_declared_learns_and_nothing_else(model: MedSA) -> None:
    model.encode(some_planes(3), [3]).square().mean().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    declared = {f"adapters.{key}" for key in model.adapter_state() if key.startswith("encoder")}
    assert learned == declared
    assert sum("relative_depth" in name for name in learned) == 2


@torch.no_grad()
def test_a_saved_network_gives_the_same_output_to_the_bit(model: MedSA, spec: BaseSpec) -> None:
    planes = some_planes(3)
    expected = model.encode(planes, [3])
    other = MedSA(model.sam, spec, dataclasses.replace(DIMS, encoder_width=2, depth=1), ("organ",)).eval()
    other.load_adapter_state(model.adapter_state(), DIMS)
    assert other.slab == 3
    assert torch.equal(other.encode(planes, [3]), expected)


@torch.no_grad()
def test_bfloat16_is_near_float32_with_depth(model: MedSA) -> None:
    planes = some_planes(4)
    exact = model.encode(planes, [4])
    assert model.precision == "float32"
    model.use_bfloat16()
    assert model.precision == "bfloat16"
    rounded = model.encode(planes, [4])
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).square().mean() < 1e-3 * exact.square().mean()


def test_bfloat16_rounds_what_is_frozen_and_nothing_that_learns(model: MedSA) -> None:
    model.use_bfloat16()
    assert {parameter.dtype for parameter in model.adapters.parameters()} == {torch.float32}
    sam = model.sam
    assert sam.image_encoder.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert sam.image_encoder.blocks[0].norm1.weight.dtype == torch.float32
    assert {parameter.dtype for parameter in sam.mask_decoder.parameters()} == {torch.float32}
    model.encode(some_planes(2), [2]).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32
        for parameter in model.adapters["encoder"].parameters()
    )
