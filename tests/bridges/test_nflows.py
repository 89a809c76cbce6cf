"""pnf in nflows: transforms with the numbers of nflows' own."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bridge_tests import EXACT, Network, assert_module, assert_same, condition_of, given, randomised, typical
from tensors import normal
from torch import Tensor
from torch.testing import assert_close

from pnf import RealNVP

nflows = pytest.importorskip("nflows")
bridge = pytest.importorskip("pnf.bridges.nflows")

from nflows import distributions, flows, transforms  # noqa: E402


@pytest.fixture(autouse=True)
def noise_in_float64(one_thread_and_one_seed: None) -> Iterator[None]:  # noqa: ARG001
    """nflows draws noise in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_flow_is_a_transform(flow: Any) -> None:
    model = flows.Flow(bridge.FlowTransform(flow), distributions.StandardNormal((flow.dims,))).double()
    context = condition_of(flow, 4)
    drawn, log_prob = model.sample_and_log_prob(3, context)
    leading = (3,) if context is None else (4, 3)
    assert (drawn.shape, log_prob.shape) == ((*leading, *flow.shape), leading)
    if len(flow.shape) == 1:
        repeated = context.repeat_interleave(3, 0)
        assert_close(log_prob.flatten(), model.log_prob(drawn.flatten(0, 1), repeated))
    x = typical(flow, context, 4)
    assert_close(model.log_prob(x, context), flow.log_prob(x, **given(flow, context)), **EXACT)
    assert_close(model.transform_to_noise(x, context), flow(x, **given(flow, context))[0], **EXACT)
    model.log_prob(x, context).mean().backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_flows_that_cannot_be() -> None:
    with pytest.raises(TypeError, match=r"^pnf\.bridges: flow must be a ProgressiveFlow or a RealNVP, got Linear"):
        bridge.FlowTransform(torch.nn.Linear(2, 2))
    both = RealNVP((4,), condition_shape=(4,), features=2, coupling="dense")
    with pytest.raises(ValueError, match=r"^pnf\.bridges: flow must have either condition_shape or features, got both"):
        bridge.FlowTransform(both)


class TanhCoupling(transforms.AffineCouplingTransform):
    """The coupling of nflows with the map of pnf."""

    def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        shift, u = transform_params.chunk(2, 1)
        return u.tanh().exp(), shift


MASKS = {"half": [1, 1, 0, 0], "other half": [-1, 0, 2, 1], "every second": [1, 0, 1, 0], "any": [0, 1, 1, 1]}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spatial", [(), (4, 6)], ids=["vectors", "images"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("context", [0, 2])
def test_the_coupling_has_the_numbers_of_nflows(
    mask: str, spatial: tuple[int, ...], direction: str, context: int
) -> None:
    def network(inputs: int, outputs: int) -> Network:
        return Network(inputs, outputs, bool(spatial), context)

    ours, theirs = bridge.AffineCoupling(MASKS[mask], network).double(), TanhCoupling(MASKS[mask], network).double()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.transform_net = ours.transform_net
    given = normal(3, context, *spatial) if context else None
    name = "__call__" if direction == "forward" else "inverse"
    assert_same(
        lambda x: getattr(ours, name)(x, given),
        lambda x: getattr(theirs, name)(x, given),
        normal(3, 4, *spatial),
        *ours.transform_net.parameters(),
    )


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_squeeze_has_the_numbers_of_nflows(direction: str) -> None:
    name = "__call__" if direction == "forward" else "inverse"
    ours, theirs = bridge.Squeeze(), transforms.SqueezeTransform()
    assert_same(getattr(ours, name), getattr(theirs, name), normal(2, 8, 4, 6))


def test_haar_splits_images_into_means_and_details() -> None:
    x = normal(2, 3, 4, 6)
    y, log_det = bridge.Haar()(x)
    assert_close(y[:, :3], torch.nn.functional.avg_pool2d(x, 2))
    jacobian = torch.autograd.functional.jacobian(lambda x: bridge.Haar()(x)[0].flatten(), x[:1])
    assert_close(log_det[:1], torch.linalg.slogdet(jacobian.reshape(72, 72)).logabsdet[None])
    back, inverse_log_det = bridge.Haar().inverse(y)
    assert_close(back, x)
    assert_close(inverse_log_det, -log_det)


def multiscale() -> flows.Flow:
    def network(inputs: int, outputs: int) -> Network:
        return Network(inputs, outputs)

    composite = transforms.MultiscaleCompositeTransform(2)
    halves = torch.arange(8) % 8 < 4
    first = [bridge.Squeeze(), bridge.AffineCoupling(halves, network), bridge.AffineCoupling(~halves, network)]
    shape = composite.add_transform(transforms.CompositeTransform(first), (8, 4, 4))
    second = [bridge.Haar(), transforms.ReversePermutation(16), bridge.AffineCoupling(torch.arange(16) % 2, network)]
    composite.add_transform(transforms.CompositeTransform(second), (4 * shape[0], 2, 2))
    return flows.Flow(composite, distributions.StandardNormal((128,)))


def test_layers_make_a_multiscale_flow() -> None:
    model = randomised(multiscale())
    x = model.sample(3)
    assert x.shape == (3, 2, 8, 8)
    z, log_det = model._transform(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: model._transform(x)[0].flatten(), x[:1].detach())
    assert_close(log_det[0], torch.linalg.slogdet(jacobian.reshape(128, 128)).logabsdet)
    assert_close(model._transform.inverse(z)[0], x)
    assert_module(model, multiscale)
