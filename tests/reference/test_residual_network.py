"""The residual network against the layers of the flows."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from pnf import reference
from pnf.flows.networks import NETWORK_EPS, ResidualNetwork
from pnf.reference import residual_network, residual_network_training


@pytest.mark.parametrize("batch_norm", [True, False])
def test_is_what_the_networks_compute(batch_norm: bool) -> None:
    network = ResidualNetwork(
        4, 6, 0, "channel", 0, hidden=5, blocks=2, kernel=(3, 3), batch_norm=batch_norm, ops=reference.OPS
    ).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network(torch.randn(8, 4, 5, 6).double(), None)
    network.eval()
    seen = []
    network.conv.register_forward_hook(lambda _module, _args, out: seen.append(out))
    want = network(torch.randn(3, 4, 5, 6).double(), None)

    filters, norms = [network.skip], []
    for block, skip in zip(network.blocks, network.skips, strict=True):
        filters += [block.conv1, block.conv2, skip]
        norms += [block.norm1, block.norm2]
    filters, norms = [*filters, network.out], [*norms, network.out_norm]
    columns = [[getattr(f, name) for f in filters] for name in ("direction", "magnitude", "bias")]
    statistics = [x for n in norms if batch_norm for x in (n.weight, n.bias, n.running_mean, n.running_var)]
    torch.testing.assert_close(residual_network(seen[0], *columns, statistics, NETWORK_EPS), want)


def test_first_and_second_derivatives() -> None:
    shapes = [(2, 2, 1, 1), (2, 2, 3, 3), (2, 2, 3, 3), (2, 2, 1, 1), (3, 2, 1, 1)]
    directions, biases = [torch.randn(s).double() for s in shapes], [torch.randn(s[0]).double() for s in shapes]
    affine = [torch.rand(2).double() + 0.5 for _ in range(6)]
    constants = [torch.rand(2).double() + 0.5 for _ in range(6)]

    def function(h: Tensor, *tensors: Tensor) -> Tensor:
        given, norms = tensors[10:], []
        for i in range(3):
            norms += [*given[2 * i : 2 * i + 2], *constants[2 * i : 2 * i + 2]]
        return residual_network(h, tensors[:5], [None] * 5, tensors[5:10], norms)

    arguments = [x.requires_grad_() for x in (torch.randn(2, 2, 3, 4).double(), *directions, *biases, *affine)]
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("blocks", [0, 2])
def test_training_is_what_the_networks_compute(blocks: int) -> None:
    network = ResidualNetwork(
        4, 6, 0, "channel", 0, hidden=5, blocks=blocks, kernel=(3, 3), batch_norm=True, ops=reference.OPS
    ).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    layers, norms = [network.conv, network.skip], []
    for block, skip in zip(network.blocks, network.skips, strict=True):
        layers += [block.conv1, block.conv2, skip]
        norms += [block.norm1, block.norm2]
    layers, norms = [*layers, network.out], [*norms, network.out_norm]
    seen: list[Tensor] = []
    network.conv.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    want = network(torch.randn(3, 4, 5, 6).double(), None)

    weights = reference.weight_norm([layer.direction for layer in layers], [layer.magnitude for layer in layers])
    biases, affine = [layer.bias for layer in layers], [p for norm in norms for p in (norm.weight, norm.bias)]
    y, means, variances = residual_network_training(seen[0], weights, biases, affine, NETWORK_EPS)
    torch.testing.assert_close(y, want)
    for norm, mean, var in zip(norms, means, variances, strict=True):
        torch.testing.assert_close(norm.running_mean, 0.1 * mean)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var * 90 / 89)

    parameters, grad = [p for layer in layers for p in layer.parameters()] + affine, torch.randn_like(y)
    got = torch.autograd.grad(y, parameters, grad, allow_unused=True, materialize_grads=True)
    # The gradients of biases in front of a normalisation are 0, up to rounding errors.
    torch.testing.assert_close(got, torch.autograd.grad(want, parameters, grad), rtol=1e-7, atol=1e-9)


def test_derivatives_in_training() -> None:
    shapes = [(2, 3, 3, 3), (2, 2, 1, 1), (2, 2, 3, 3), (2, 2, 3, 3), (2, 2, 1, 1), (3, 2, 1, 1)]
    weights, biases = [torch.randn(s).double() for s in shapes], [torch.randn(s[0]).double() for s in shapes]
    norms = [torch.rand(2).double() + 0.5 for _ in range(6)]

    def function(x: Tensor, *tensors: Tensor) -> Tensor:
        return residual_network_training(x, tensors[:6], biases, tensors[6:])[0]

    arguments = [x.requires_grad_() for x in (torch.randn(2, 3, 3, 4).double(), *weights, *norms)]
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments, fast_mode=True)
