"""The trained parts of Med-SA: small bottleneck modules beside SAM's frozen ones.

Source: Wu et al., *Medical SAM Adapter*, arXiv 2304.12620 v7. Every `up` is zero-initialised, so that a freshly
adapted network gives the unadapted network's output bit for bit. Those of the encoder compute in the dtype of what
they are given.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

MLP_SCALE = 0.5  # the factor s of the adapter parallel to an MLP (the paper leaves its value open)

PromptArm = Literal["none", "add", "concat", "hyper"]


@dataclass(frozen=True)
class AdapterDims:
    """Widths of the adapters, in channels, and which of the paper's parts there are.

    `hyper_layers` is the number of generated weights K of HyP-Adpt. `prompt_arm` is how the decoder's first adapter
    uses the prompt. `depth` is how many neighbouring slices are seen together: with 1 there is no depth branch.
    """

    encoder_width: int
    decoder_width: int
    hyper_width: int
    prompt_rank: int
    hyper_layers: int
    prompt_arm: PromptArm = "hyper"
    depth: int = 1


class Adapter(nn.Module):
    """Up(act(Down(x))) over the last axis; zero before training."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.up = _zero_linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return _linear(self.up, functional.gelu(_linear(self.down, x)))

    def after(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """forward(projection(x)), cheaper: two linear maps in a row are one, which is as narrow as Down."""
        down = self.down.weight
        weight = down @ projection.weight.to(down.dtype)
        bias = functional.linear(projection.bias.to(down.dtype), down, self.down.bias)
        narrow = functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        return _linear(self.up, functional.gelu(narrow))


class UnpromptedAdapter(nn.Module):
    """The arm `none`: the prompt is not looked at. `tokens` and `prompt` as in HyperAdapter, in all arms."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.up = _zero_linear(width, channels)

    def forward(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        return _linear(self.up, functional.relu(_linear(self.down, tokens)))


class AddAdapter(nn.Module):
    """The arm `add`: the prompt, reduced as the tokens are, is added before the activation."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.down_prompt = nn.Linear(channels, width)
        self.up = _zero_linear(width, channels)

    def forward(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        mixed = _linear(self.down, tokens) + _linear(self.down_prompt, prompt)
        return _linear(self.up, functional.relu(mixed))


class ConcatAdapter(nn.Module):
    """The arm `concat`: token and prompt, side by side, are reduced together."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(2 * channels, width)
        self.up = _zero_linear(width, channels)

    def forward(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        both = torch.cat([tokens, prompt], dim=-1)
        return _linear(self.up, functional.relu(_linear(self.down, both)))


class HyperAdapter(nn.Module):
    """The arm `hyper`, HyP-Adpt: the prompt writes the weights that act on the down-projected tokens.

    `tokens` and `prompt` are (B, T, channels): the decoder's tokens now, and as they entered the decoder.
    """

    def __init__(self, channels: int, width: int, rank: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.down = nn.Linear(channels, width)
        self.down_prompt = nn.Linear(channels, rank)
        self.writers = nn.ModuleList(_identity_writer(rank, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.up = _zero_linear(width, channels)

    def forward(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        embedding = self.down(tokens)
        reduced = self.down_prompt(prompt)
        for writer, norm in zip(self.writers, self.norms, strict=True):
            weights = writer(reduced).unflatten(-1, (self.width, self.width))
            embedding = functional.relu(norm(torch.einsum("bti,btio->bto", embedding, weights)))
        return self.up(embedding)


def prompt_adapter(channels: int, dims: AdapterDims) -> nn.Module:
    """The decoder's first adapter in the arm that `dims` names; called with (tokens, prompt)."""
    width = dims.hyper_width
    match dims.prompt_arm:
        case "none":
            return UnpromptedAdapter(channels, width)
        case "add":
            return AddAdapter(channels, width)
        case "concat":
            return ConcatAdapter(channels, width)
        case "hyper":
            return HyperAdapter(channels, width, dims.prompt_rank, dims.hyper_layers)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The trained weights stay float32; they are rounded to the dtype of x where that is a lower one."""
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _identity_writer(rank: int, width: int) -> nn.Linear:
    """One linear layer whose output, reshaped to (width, width), starts near the identity."""
    writer = nn.Linear(rank, width * width)
    nn.init.normal_(writer.weight, std=1e-2 / rank**0.5)
    with torch.no_grad():
        writer.bias.copy_(torch.eye(width).flatten())
    return writer
