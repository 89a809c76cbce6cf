"""Batch normalisation with ReLU against its definition, PyTorch's layers and those of the networks."""

from functools import partial

import pytest
import torch
from tensors import normal
from torch import Tensor, nn
from torch.nn.functional import batch_norm, relu

from pnf.flows.networks import NETWORK_EPS, ResidualNetwork
from pnf.reference import OPS, batch_norm_relu

EPS = 1e-3
shapes = pytest.mark.parametrize("shape", [(3, 4, 2, 5), (5, 3, 7), (6, 2), (2, 3, 2, 1, 3)], ids=str)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


def arguments(shape: tuple[int, ...]) -> list[Tensor]:
    """x with a different mean and scale in each channel, weight and bias."""
    centre, scale = (normal(shape[1]).view(-1, *(1,) * (len(shape) - 2)) for _ in range(2))
    return [a.requires_grad_() for a in (3 * scale * normal(*shape) + centre, normal(shape[1]), normal(shape[1]))]


@shapes
def test_is_its_definition(shape: tuple[int, ...]) -> None:
    x, weight, bias = (a.detach() for a in arguments(shape))
    y, mean, var = batch_norm_relu(x, weight, bias, eps=EPS)
    given = normal(shape[1]), normal(shape[1]).square()
    y_given = batch_norm_relu(x, weight, bias, *given, EPS)[0]
    for c in range(shape[1]):
        entries = x[:, c].flatten().tolist()
        m = sum(entries) / len(entries)
        v = sum((e - m) ** 2 for e in entries) / len(entries)
        close((mean[c].item(), var[c].item()), (m, v))
        for got, m_c, v_c in ((y, m, v), (y_given, given[0][c].item(), given[1][c].item())):
            scale = weight[c].item() / (v_c + EPS) ** 0.5
            want = [max((e - m_c) * scale + bias[c].item(), 0) for e in entries]
            close(got[:, c].flatten(), torch.tensor(want, dtype=x.dtype))


@pytest.mark.parametrize("training", [True, False])
@shapes
def test_values_and_gradients_are_those_of_pytorch(shape: tuple[int, ...], training: bool) -> None:
    x, weight, bias = args = arguments(shape)
    given = (None, None) if training else (normal(shape[1]), normal(shape[1]).square())
    grad = normal(*shape)
    y, mean, var = batch_norm_relu(*args, *given, EPS)
    # With momentum 1 the running statistics are those of the batch.
    running = [normal(shape[1]), normal(shape[1])] if training else [a.clone() for a in given]
    want = relu(batch_norm(x, *running, weight, bias, training, 1.0, EPS))
    n = x.numel() // shape[1]
    close((y, mean, var * n / (n - 1) if training else var), (want, *running))
    assert (y == 0).any()
    close(torch.autograd.grad(y, args, grad), torch.autograd.grad(want, args, grad))


@pytest.mark.parametrize(("dtype", "far", "rtol"), [(torch.float64, 1e8, 1e-12), (torch.float32, 1e4, 1e-5)], ids=str)
def test_statistics_of_channels_far_from_zero(dtype: torch.dtype, far: float, rtol: float) -> None:
    # The steps of the dtypes are 2**-26 and 2**-10 at the mean, so x holds these offsets exactly.
    offsets = (64 * normal(8, 3, 16, 16)).round() / 64
    x, one, zero = (offsets + far).to(dtype), torch.ones(3, dtype=dtype), torch.zeros(3, dtype=dtype)
    y, mean, var = batch_norm_relu(x, one, zero, eps=0)
    entries = offsets.transpose(0, 1).flatten(1)
    torch.testing.assert_close(var.double(), entries.var(1, correction=0), rtol=rtol, atol=0)
    torch.testing.assert_close(mean.double(), entries.mean(1) + far, rtol=torch.finfo(dtype).eps, atol=0)
    # A rounded mean would shift all entries.
    want = batch_norm_relu(offsets, one.double(), zero.double(), eps=0)[0]
    torch.testing.assert_close(y.double(), want, rtol=0, atol=4 * far * torch.finfo(dtype).eps)


def test_a_constant_channel_gives_its_bias() -> None:
    x = torch.full((4, 2, 3), 7.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.5, -0.5], dtype=torch.float64)
    y, mean, var = batch_norm_relu(x, torch.ones_like(bias), bias)
    assert (mean.tolist(), var.tolist()) == ([7, 7], [0, 0])
    assert torch.equal(y, bias.clamp(min=0).view(2, 1).expand_as(y))
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(grad, torch.zeros_like(x))


def inputs_of(module: nn.Module) -> list[Tensor]:
    """A list that will hold the inputs of the module's calls."""
    calls: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    return calls


@pytest.mark.parametrize("training", [True, False])
def test_is_what_the_networks_compute(training: bool) -> None:
    sizes = {"hidden": 4, "blocks": 2, "kernel": (3, 3)}
    network = ResidualNetwork(4, 3, 0, "channel", 0, **sizes, batch_norm=True, ops=OPS).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    # Each normalisation, and the convolution after its ReLU.
    stages = [(b.norm1, b.conv1) for b in network.blocks] + [(b.norm2, b.conv2) for b in network.blocks]
    stages.append((network.out_norm, network.out))
    calls = [(norm, inputs_of(norm), inputs_of(conv)) for norm, conv in stages]
    for norm, _ in stages:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm, _ in stages]
    network.train(training)(normal(3, 4, 4, 5), None)
    for (norm, inputs, outputs), running in zip(calls, before, strict=True):
        (x,), (want,) = inputs, outputs
        given = (None, None) if training else running
        y, mean, var = batch_norm_relu(x, norm.weight, norm.bias, *given, NETWORK_EPS)
        close(y, want)
        if training:
            n = x.numel() // x.shape[1]
            batch = mean, var * n / (n - 1)
            close(
                [norm.running_mean, norm.running_var],
                [old.lerp(new, norm.momentum) for old, new in zip(running, batch, strict=True)],
            )
        grad = torch.randn_like(y)
        parameters = norm.weight, norm.bias
        x = x.detach().requires_grad_()
        got = batch_norm_relu(x, *parameters, *given, NETWORK_EPS)[0]
        close(
            torch.autograd.grad(got, (x, *parameters), grad),
            torch.autograd.grad(relu(norm(x)), (x, *parameters), grad),
        )
