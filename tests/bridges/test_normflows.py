"""pnf in normflows: flows with the numbers of normflows' own, under its own test helpers."""

from typing import Any

import pytest
import torch
from bridge_tests import EXACT, Network, assert_module, assert_same, condition_of, given, randomised, typical
from tensors import normal
from torch import Tensor, nn
from torch.testing import assert_close

normflows = pytest.importorskip("normflows")
bridge = pytest.importorskip("pnf.bridges.normflows")

from normflows.flows.flow_test import FlowTest  # noqa: E402


class ConditionalNormal(normflows.distributions.BaseDistribution):
    """A standard normal distribution that ignores the context."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, num_samples: int = 1, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = normal(num_samples, self.dims)
        return z, self.log_prob(z, context)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)


def test_a_flow_is_one_of_normflows(flow: Any) -> None:
    context = condition_of(flow, 4)
    base = ConditionalNormal(flow.dims)
    if context is None:
        model, more = normflows.NormalizingFlow(base, [bridge.WholeFlow(flow)]), {}
    else:
        model, more = normflows.ConditionalNormalizingFlow(base, [bridge.WholeFlow(flow)]), {"context": context}
    drawn, log_prob = model.sample(4, **more)
    assert (drawn.shape, log_prob.shape) == ((4, *flow.shape), (4,))
    if len(flow.shape) == 1:
        assert_close(log_prob, model.log_prob(drawn, **more))
    x = typical(flow, context, 4)
    assert_close(model.log_prob(x, **more), flow.log_prob(x, **given(flow, context)), **EXACT)
    model.forward_kld(x, **more).backward()
    assert all(p.grad is not None for p in flow.parameters())


class Interleaved(nn.Module):
    """A network of pnf's coupling as normflows wants it: shift and log-scale in turn, and the latter bounded."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        shift, u = self.network(x).chunk(2, 1)
        return torch.stack((shift, u.tanh()), 2).flatten(1, 2)


@pytest.mark.parametrize("split", ["channel", "channel_inv"])
@pytest.mark.parametrize("channels", [4, 6])
@pytest.mark.parametrize("spatial", [(), (4, 6)], ids=["vectors", "images"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_coupling_has_the_numbers_of_normflows(
    split: str, channels: int, spatial: tuple[int, ...], direction: str
) -> None:
    network = Network(channels // 2, channels, bool(spatial))
    ours = bridge.AffineCoupling(channels, network, split).double()
    theirs = normflows.flows.AffineCouplingBlock(Interleaved(network), split_mode=split).double()
    x = normal(3, channels, *spatial)
    assert_same(getattr(ours, direction), getattr(theirs, direction), x, *network.parameters())


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_squeeze_has_the_numbers_of_normflows(direction: str) -> None:
    ours, theirs = bridge.Squeeze(), normflows.flows.Squeeze()
    assert_same(getattr(ours, direction), getattr(theirs, direction), normal(2, 8, 4, 6))


@pytest.mark.parametrize("context", [0, 3])
def test_couplings_pass_the_tests_of_normflows(context: int) -> None:
    layer = bridge.AffineCoupling(6, Network(3, 6, False, context)).double()
    FlowTest().checkForwardInverse(layer, normal(5, 6), normal(5, 3) if context else None, atol=1e-10, rtol=1e-10)


def multiscale() -> nn.Module:
    layers = [
        [
            bridge.AffineCoupling(8, Network(4, 8), "channel"),
            bridge.AffineCoupling(8, Network(4, 8), "channel_inv"),
            normflows.flows.Invertible1x1Conv(8),
            bridge.Squeeze(),
        ],
        [bridge.AffineCoupling(4, Network(2, 4)), bridge.Haar()],
    ]
    shapes = [(8, 2, 2), (2, 4, 4)]
    bases = [normflows.distributions.DiagGaussian(shape, trainable=False) for shape in shapes]
    return normflows.MultiscaleFlow(bases, layers, [normflows.flows.Merge()], class_cond=False)


def test_layers_make_a_multiscale_flow() -> None:
    model = randomised(multiscale())
    x, _ = model.sample(3)
    assert x.shape == (3, 1, 8, 8)
    z, log_det = model.inverse_and_log_det(x)
    back, back_log_det = model.forward_and_log_det(z)
    assert_close(back, x)
    assert_close(back_log_det, -log_det)

    def noise(x: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in model.inverse_and_log_det(x)[0]])

    jacobian = torch.autograd.functional.jacobian(noise, x[:1].detach())
    assert_close(log_det[0], torch.linalg.slogdet(jacobian.reshape(64, 64)).logabsdet)
    assert_module(model, multiscale)


def test_splits_that_cannot_be() -> None:
    with pytest.raises(
        ValueError, match=r"^AffineCoupling: split_mode must be 'channel' or 'channel_inv', got 'checker"
    ):
        bridge.AffineCoupling(4, nn.Identity(), "checkerboard")
