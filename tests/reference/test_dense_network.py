"""The dense network against the layers of the flows."""

import pytest
import torch
from torch import nn

from pnf.flows.networks import DenseNetwork
from pnf.reference import dense_network


@pytest.mark.parametrize("condition", [0, 3])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_is_what_the_networks_compute(layers: int, condition: int) -> None:
    # Without hidden layers, the only layer still takes `hidden` features.
    network = DenseNetwork(4 + condition, 6, hidden=5 if layers else 4 + condition, layers=layers).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x, given = torch.randn(7, 4).double(), torch.randn(7, condition).double() if condition else None
    weights, biases = zip(*((layer.weight, layer.bias) for layer in list(network)[::2]), strict=True)
    torch.testing.assert_close(dense_network(x, given, weights, biases), network(x, given))
