import copy
import math

import pytest
import torch
from torch import nn

from lib.training.optimizer import Optimizer


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Linear(12, 4), nn.Linear(4, 12)
        self.labels = nn.Embedding(5, 12)
        self.table = nn.Parameter(torch.zeros(7, 6))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.up(self.down(x)) + self.labels.weight[0] + self.table.sum()


@pytest.fixture
def network():
    return Network()


def updated(network, optimizer, learning_rate=0.1, steps=1):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(torch.randn(8, 12)) ** 2).sum().backward()
        optimizer.step(learning_rate)
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_weights_of_linear_layers_are_matrices_embeddings_and_tables_are_not(network):
    optimizer = Optimizer.of(network, list(network.parameters()))
    names = {id(value): name for name, value in network.named_parameters()}
    parts = {
        part: {names[id(value)] for group in made.param_groups for value in group["params"]}
        for part, made in optimizer.parts.items()
    }
    assert parts["matrices"] == {"down.weight", "up.weight", "unused.weight"}
    assert parts["others"] == {"down.bias", "up.bias", "unused.bias", "labels.weight", "table"}


def test_a_matrix_is_changed_alike_in_all_directions(network):
    """Muon's step has singular values near one, times 0.2 sqrt(longer side) of the rate; AdamW's first has not."""
    before = network.up.weight.detach().clone()
    after = updated(network, Optimizer.of(network, list(network.parameters())), learning_rate=0.01)
    change = (after["up.weight"] - before) / (0.01 * 0.2 * math.sqrt(12))
    assert torch.linalg.svdvals(change).tolist() == pytest.approx([1.0] * 4, abs=0.4)


def test_what_has_no_gradient_has_not_begun(network):
    optimizer = Optimizer.of(network, list(network.parameters()))
    before = network.unused.weight.detach().clone()
    after = updated(network, optimizer, steps=2)
    assert torch.equal(after["unused.weight"], before)
    assert [optimizer.has_begun(layer.weight) for layer in (network.up, network.unused)] == [True, False]
    assert optimizer.has_begun(network.table)


@pytest.mark.parametrize("chosen", ["table", "up.weight"])
def test_a_part_may_be_empty(network, chosen):
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    values = dict(network.named_parameters())
    after = updated(network, Optimizer.of(network, [values[chosen]]))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [chosen]


def test_it_goes_on_from_its_state(network):
    optimizer = Optimizer.of(network, list(network.parameters()))
    weights = updated(network, optimizer, steps=3)
    state = copy.deepcopy(optimizer.state())  # as if read from a file
    other = Network()
    other.load_state_dict(weights)
    successor = Optimizer.of(other, list(other.parameters()))
    successor.restore(state)
    whole, resumed = updated(network, optimizer), updated(other, successor)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    "state",
    [
        {},
        torch.optim.AdamW([nn.Parameter(torch.zeros(2, 2))]).state_dict(),
        {"matrices": {"state": {}, "param_groups": []}, "others": {"state": {}, "param_groups": []}},
    ],
)
def test_a_state_of_something_else_is_refused(network, state):
    optimizer = Optimizer.of(network, list(network.parameters()))
    with pytest.raises((KeyError, ValueError)):
        optimizer.restore(state)


def test_adamw_alone_is_for_comparisons(network):
    ours, plain = Optimizer.adamw(network, list(network.parameters())), Network()
    theirs = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.01)
    after = updated(network, ours)
    torch.manual_seed(1)
    (plain(torch.randn(8, 12)) ** 2).sum().backward()
    theirs.step()
    assert all(torch.equal(after[name], value) for name, value in plain.named_parameters())
