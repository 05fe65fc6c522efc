"""The arms of the decoder's first adapter, each against its formula written out."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.model.adapters import AdapterDims, PromptArm, prompt_adapter
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import MedSA, PlanePrompts

CHANNELS = 6
DIMS = AdapterDims(encoder_width=4, decoder_width=4, hyper_width=3, prompt_rank=2, hyper_layers=2)
ARMS: tuple[PromptArm, ...] = ("none", "add", "concat", "hyper")


def random_adapter(arm: PromptArm) -> nn.Module:
    torch.manual_seed(0)
    adapter = prompt_adapter(CHANNELS, dataclasses.replace(DIMS, prompt_arm=arm))
    nn.init.normal_(adapter.up.weight)
    nn.init.normal_(adapter.up.bias)
    return adapter


def by_hand(arm: PromptArm, adapter: nn.Module, token: Tensor, prompt: Tensor) -> Tensor:
    """One token (channels,) and its prompt embedding (channels,)."""

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return layer.weight @ x + layer.bias

    if arm == "none":
        hidden = functional.relu(linear(adapter.down, token))
    elif arm == "add":
        hidden = functional.relu(linear(adapter.down, token) + linear(adapter.down_prompt, prompt))
    elif arm == "concat":
        hidden = functional.relu(linear(adapter.down, torch.cat([token, prompt])))
    else:
        hidden, reduced = linear(adapter.down, token), linear(adapter.down_prompt, prompt)
        for writer, norm in zip(adapter.writers, adapter.norms, strict=True):
            weights = linear(writer, reduced).view(3, 3)
            mixed = torch.stack([sum(hidden[i] * weights[i, o] for i in range(3)) for o in range(3)])
            hidden = functional.relu(norm(mixed))
    return linear(adapter.up, hidden)


@torch.no_grad()
@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_is_its_formula(arm: PromptArm) -> None:
    adapter = random_adapter(arm)
    tokens, prompt = torch.randn(2, 4, CHANNELS), torch.randn(2, 4, CHANNELS)
    found = adapter(tokens, prompt)
    for batch in range(2):
        for token in range(4):
            expected = by_hand(arm, adapter, tokens[batch, token], prompt[batch, token])
            torch.testing.assert_close(found[batch, token], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("arm", ARMS)
def test_all_but_none_look_at_the_prompt(arm: PromptArm) -> None:
    adapter = random_adapter(arm)
    tokens, prompt = torch.randn(2, 4, CHANNELS), torch.randn(2, 4, CHANNELS)
    assert torch.equal(adapter(tokens, prompt), adapter(tokens, 2 * prompt)) == (arm == "none")


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_starts_as_sam_and_learns(arm: PromptArm, tiny_spec: BaseSpec) -> None:
    torch.manual_seed(0)
    sam = build_sam(tiny_spec).eval()
    bare = MedSA(sam, tiny_spec, None).eval()
    model = MedSA(sam, tiny_spec, dataclasses.replace(DIMS, prompt_arm=arm), ("organ",)).eval()
    model.trained = True
    embeddings = torch.randn(1, 256, tiny_spec.grid, tiny_spec.grid)
    prompts = PlanePrompts(torch.tensor([[[8.0, 9.0]]]), torch.tensor([[1]]))  # no label: SAM has none
    answer = model.decode(embeddings, prompts)
    assert torch.equal(answer.logits, bare.decode(embeddings, prompts).logits)
    answer.logits.square().mean().backward()
    assert model.adapters["decoder"][0].prompt.up.weight.grad.abs().max() > 0
    state = model.adapter_state()
    model.load_adapter_state(state)
    assert all(torch.equal(value, state[key]) for key, value in model.adapter_state().items())
