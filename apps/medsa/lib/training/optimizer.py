"""What makes a step of the gradients: Muon for matrices, AdamW for all else.

Sources: Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024), with the step length of Liu et
al., *Muon is Scalable for LLM Training*, arXiv 2502.16982, which suits AdamW's learning rates; Loshchilov and Hutter,
*Decoupled Weight Decay Regularization*, arXiv 1711.05101.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

WEIGHT_DECAY = 0.01


class Optimizer:
    """`matrices`, weights (out, in) of linear layers, and `others`, with one learning rate for both.

    A parameter without a gradient is left alone, and begins when it has one.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> None:
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            self.parts["matrices"] = torch.optim.Muon(
                matrices, lr=0.0, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            )
        if others:
            self.parts["others"] = torch.optim.AdamW(others, lr=0.0, weight_decay=WEIGHT_DECAY)

    @classmethod
    def of(cls, model: nn.Module, parameters: Sequence[nn.Parameter]) -> "Optimizer":
        """For these `parameters` of `model`. Embeddings and tables are no matrices, though they have two axes."""
        linear = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
        return cls(
            [value for value in parameters if id(value) in linear],
            [value for value in parameters if id(value) not in linear],
        )

    @classmethod
    def adamw(cls, model: nn.Module, parameters: Sequence[nn.Parameter]) -> "Optimizer":
        """AdamW for all of them, for comparisons."""
        return cls([], parameters)

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for part in self.parts.values():
            part.zero_grad()

    def step(self, learning_rate: float) -> None:
        """One update."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def has_begun(self, parameter: nn.Parameter) -> bool:
        """Whether it was ever updated."""
        return any(parameter in part.state for part in self.parts.values())

    def state(self) -> dict[str, Any]:
        """What it goes on from."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`. Raises KeyError or ValueError when it is of other parameters."""
        if set(state) != set(self.parts):
            raise KeyError(f"an optimizer of {sorted(state)}, not of {sorted(self.parts)}")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


MakeOptimizer = Callable[[nn.Module, Sequence[nn.Parameter]], Optimizer]
