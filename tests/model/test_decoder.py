"""The mask decoder with all its adapters, against the paper's equations written down with SAM's own layers."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.model import decoder
from lib.model.adapters import AdapterDims, PromptArm
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import MedSA, PlanePrompts, SinglePrompt

DIMS = AdapterDims(encoder_width=4, decoder_width=5, hyper_width=4, prompt_rank=3, hyper_layers=2)
ARMS: tuple[PromptArm, ...] = ("none", "add", "concat", "hyper")


def random_model(spec: BaseSpec, arm: PromptArm) -> MedSA:
    torch.manual_seed(0)
    model = MedSA(
        build_sam(spec), spec, dataclasses.replace(DIMS, prompt_arm=arm), ("liver", "spleen")
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for parameter in model.adapters.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.trained = True
    return model


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def bottleneck(adapter: nn.Module, x: Tensor) -> Tensor:
    return linear(adapter.up, functional.gelu(linear(adapter.down, x)))


def first_adapter(arm: PromptArm, adapter: nn.Module, q: Tensor, p: Tensor) -> Tensor:
    """q and p are (T, 256)."""
    if arm == "none":
        return linear(adapter.up, linear(adapter.down, q).relu())
    if arm == "add":
        return linear(adapter.up, (linear(adapter.down, q) + linear(adapter.down_prompt, p)).relu())
    if arm == "concat":
        return linear(adapter.up, linear(adapter.down, torch.cat([q, p], dim=1)).relu())
    e, reduced = linear(adapter.down, q), linear(adapter.down_prompt, p)
    for writer, norm in zip(adapter.writers, adapter.norms, strict=True):
        rows = []
        for token in range(len(e)):
            weights = linear(writer, reduced[token]).view(4, 4)
            rows.append(norm(e[token] @ weights).relu())
        e = torch.stack(rows)
    return linear(adapter.up, e)


def two_way(
    arm: PromptArm, layer: nn.Module, beside: nn.Module, q: Tensor, k: Tensor, p: Tensor, place: Tensor
):
    """One block, one prompt: q and p (T, 256), k and place (N, 256)."""

    def attend(attention: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention(q=queries[None], k=keys[None], v=values[None])[0]

    if layer.skip_first_layer_pe:
        q = layer.norm1(attend(layer.self_attn, q, q, q))
    else:
        q = layer.norm1(q + attend(layer.self_attn, q + p, q + p, q))
    q = q + attend(layer.cross_attn_token_to_image, q + p, k + place, k)
    q = layer.norm2(q + first_adapter(arm, beside.prompt, q, p))
    q = layer.norm3(q + layer.mlp(q) + 0.5 * bottleneck(beside.mlp, q))
    k = k + attend(layer.cross_attn_image_to_token, k + place, q + p, q)
    return q, layer.norm4(k + bottleneck(beside.image, k))


def reference(model: MedSA, arm: PromptArm, embedding: Tensor, prompt: SinglePrompt) -> tuple[Tensor, Tensor]:
    """Logits (4, m, m) and IoU (4,) of one click with a label."""
    decoder, encoder = model.sam.mask_decoder, model.sam.prompt_encoder
    points = torch.tensor([[point[:2] for point in prompt.points]])
    signs = torch.tensor([[point[2] for point in prompt.points]])
    sparse, dense = encoder(points=(points, signs), boxes=None, masks=None)
    label = model.adapters["labels"].weight[prompt.label_id]
    p = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, sparse[0], label[None]])
    k = (embedding + dense[0]).flatten(1).T
    place = encoder.get_dense_pe()[0].flatten(1).T
    q = p
    for layer, beside in zip(decoder.transformer.layers, model.adapters["decoder"], strict=True):
        q, k = two_way(arm, layer, beside, q, k, p, place)
    final = decoder.transformer.final_attn_token_to_image
    q = decoder.transformer.norm_final_attn(q + final(q=(q + p)[None], k=(k + place)[None], v=k[None])[0])
    grid = model.spec.grid
    upscaled = decoder.output_upscaling(k.T.reshape(1, 256, grid, grid))[0]
    weights = [mlp(q[1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    logits = torch.stack([torch.einsum("c,chw->hw", row, upscaled) for row in weights])
    return logits, decoder.iou_prediction_head(q[0])


def click(x: float, y: float, label_id: int) -> SinglePrompt:
    return SinglePrompt([(x, y, 1)], label_id=label_id)


@torch.no_grad()
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("prompts", [[click(8.0, 9.0, 1)], [click(30.0, 50.0, 0), click(60.0, 2.0, 1)]])
def test_it_is_the_published_decoder(
    arm: PromptArm, prompts: Sequence[SinglePrompt], tiny_spec: BaseSpec
) -> None:
    model = random_model(tiny_spec, arm)
    embeddings = torch.randn(len(prompts), 256, tiny_spec.grid, tiny_spec.grid)
    answer = model.decode(embeddings, PlanePrompts.stack(prompts))
    for row, prompt in enumerate(prompts):
        logits, iou = reference(model, arm, embeddings[row], prompt)
        assert (answer.logits[row] - logits).abs().max() <= 1e-5 * logits.abs().max()
        torch.testing.assert_close(answer.iou[row], iou, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_exactly_what_is_saved_learns(arm: PromptArm, tiny_spec: BaseSpec) -> None:
    model = random_model(tiny_spec, arm)
    planes = 255 * torch.rand(2, 3, 64, 64)
    prompts = PlanePrompts.stack([click(8.0, 9.0, 0), click(30.0, 50.0, 1)])
    answer = model.decode(model.encode(planes, [2]), prompts)
    (answer.logits.square().mean() + answer.iou.square().mean()).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {f"adapters.{key}" for key in model.adapter_state()}


def test_bfloat16_does_not_move_a_click(tiny_spec: BaseSpec) -> None:
    torch.manual_seed(0)
    prompt_encoder = build_sam(tiny_spec).prompt_encoder
    points, labels = torch.rand(3, 5, 2) * 64, torch.ones(3, 5, dtype=torch.long)
    exact = decoder.embed_points(prompt_encoder, points, labels)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = decoder.embed_points(prompt_encoder, points, labels)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, decoder.FEW_TOKENS, decoder.FEW_TOKENS + 1])
def test_few_tokens_see_an_image_as_in_segment_anything_and_it_sees_them(
    tiny_spec: BaseSpec, tokens: int
) -> None:
    """Whichever side is projected; all biases count, and every prompt of a batch has its own answer."""
    layer = random_model(tiny_spec, "none").sam.mask_decoder.transformer.layers[1]
    image, values, asked, offered = (torch.randn(3, n, 256) for n in (50, 50, tokens, tokens))
    with torch.inference_mode():
        forth = layer.cross_attn_token_to_image
        back = layer.cross_attn_image_to_token
        for attention in (forth, back):  # SAM's own begin at zero
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                nn.init.normal_(getattr(attention, name).bias)
        torch.testing.assert_close(
            decoder._tokens_to_image(forth, asked, image, values), forth(q=asked, k=image, v=values)
        )
        torch.testing.assert_close(
            decoder._image_to_tokens(back, image, asked, offered), back(q=image, k=asked, v=offered)
        )


def test_mask_logits_are_those_of_segment_anythings_upscaling(tiny_spec: BaseSpec) -> None:
    mask_decoder = random_model(tiny_spec, "none").sam.mask_decoder
    keys, weights = torch.randn(2, 3 * 5, 256), torch.randn(2, 4, 32)
    with torch.inference_mode():
        upscaled = mask_decoder.output_upscaling(keys.mT.reshape(2, 256, 3, 5))
        expected = torch.einsum("pnc,pchw->pnhw", weights, upscaled)
        found = decoder._mask_logits(mask_decoder, keys, weights, (3, 5))
    torch.testing.assert_close(found, expected)


def test_the_rounded_copy_is_as_near_to_float32_as_rounding_in_every_call(tiny_spec: BaseSpec) -> None:
    spec = dataclasses.replace(tiny_spec, image_size=128, patch_size=4)
    model = random_model(spec, "hyper")
    embeddings = torch.randn(2, 256, spec.grid, spec.grid)
    prompts = PlanePrompts.stack([SinglePrompt([(20.0, 30.0, 1)], label_id=1)] * 2)
    with torch.inference_mode():
        exact = model.decode(embeddings, prompts).logits
        with torch.autocast("cpu", torch.bfloat16):
            in_every_call = model._decode(model.sam.mask_decoder, embeddings, prompts).logits
    model.use_bfloat16()
    assert {value.dtype for value in model.sam.mask_decoder.state_dict().values()} == {torch.float32}
    sibling = model.sibling()
    sibling.adapters, sibling.trained = model.adapters, True
    with torch.inference_mode():
        once = model.decode(embeddings, prompts).logits
        assert torch.equal(sibling.decode(embeddings, prompts).logits, once)
    assert not torch.equal(once, exact)
    assert (once - exact).abs().mean() < 1.25 * (in_every_call - exact).abs().mean()
