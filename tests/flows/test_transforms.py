"""Compiled flows against the reference under every mixture of transforms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.testing import assert_close
from transform_tests import TRANSFORMS, compare, draw

from pnf import fast, reference

SHAPE = (1, 2, 4)
FLOWS = {
    "dense bounded": {"coupling": "dense"},
    "dense identity": {"coupling": "dense", "detail": "identity"},
    "conv bounded": {},
    "conv identity": {"detail": "identity"},
    "conv batch": {"norm": "batch"},
    "conv invertible": {"memory": "invertible"},
}
TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}


def pair(randomise: Callable[..., nn.Module], name: str, shape: tuple[int, ...] = SHAPE) -> list[Any]:
    """The reference and the compiled flow, with the same parameters and in evaluation mode."""
    flows = []
    for module in (reference, fast):
        torch.manual_seed(0)
        flow = module.ProgressiveFlow(shape, 1, hidden=2, blocks=1, num_couplings=1, **FLOWS[name]).double()
        flows.append(randomise(flow, 0.1).train())
        flow.log_prob(pixels(8, shape))
    flows[1].load_state_dict(flows[0].state_dict())
    return [flow.eval() for flow in flows]


def pixels(batch: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return 0.1 + 0.8 * torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


some_flows = pytest.mark.parametrize(
    "name", [name if name.endswith("bounded") else pytest.param(name, marks=pytest.mark.slow) for name in FLOWS]
)


@pytest.mark.parametrize("outer", TRANSFORMS)
@some_flows
def test_two_transforms(randomise: Callable[..., nn.Module], name: str, outer: str) -> None:
    want, got = pair(randomise, name)
    x = pixels(1)
    # The pixels stay within [0, 1] under every transform.
    shares = [lambda v, f=f: f.stage_log_probs(v.view(x.shape)).flatten() for f in (got, want)]
    compare(outer, *shares, x.flatten(), rtol=1e-8)


@some_flows
def test_two_transforms_of_the_inverse(randomise: Callable[..., nn.Module], name: str) -> None:
    want, got = pair(randomise, name)
    for outer in ("jacfwd", "jacrev"):
        draws = [lambda z, f=f: torch.cat([part.flatten() for part in f.inverse(z.view(1, -1))]) for f in (got, want)]
        compare(outer, *draws, draw(8, 4), rtol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_second_derivatives_of_the_log_density(randomise: Callable[..., nn.Module], name: str) -> None:
    x, found = pixels(1, (2, 4, 4)), []
    for flow in pair(randomise, name, (2, 4, 4)):
        log_prob = lambda y, flow=flow: flow.log_prob(y).sum()  # noqa: E731
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(flow.log_prob(forward_ad.make_dual(x, x.cos()))).tangent
        found.append((hessian(log_prob)(x), jvp(grad(log_prob), (x,), (x.cos(),))[1], tangent))
    assert_close(found[1], found[0], **TOLERANCE)


@pytest.mark.parametrize("name", FLOWS)
def test_score_matching_reaches_the_parameters(randomise: Callable[..., nn.Module], name: str) -> None:
    """``.backward()`` through ``torch.func.grad``, and through a divergence in forward mode."""
    x, found = pixels(2), []
    for flow in pair(randomise, name):
        score = grad(lambda y, flow=flow: flow.log_prob(y).sum())
        value, tangent = jvp(score, (x,), (x.cos(),))
        (value.square().sum() + tangent.sum()).backward()
        found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in flow.parameters()])
    assert any(p.abs().max() > 1e-3 for p in found[0])
    assert_close(found[1], found[0], **TOLERANCE)


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_of_each_example_and_of_an_ensemble(randomise: Callable[..., nn.Module], name: str) -> None:
    x, found = pixels(3), []
    for flow in pair(randomise, name):
        state = dict(flow.named_parameters()), dict(flow.named_buffers())

        def loss(parameters: dict[str, Tensor], y: Tensor, flow: Any = flow, state: Any = state) -> Tensor:
            z, log_det = functional_call(flow, (parameters, state[1]), (y[None],))
            return (z.square().sum() - log_det.sum()) / 2

        each = vmap(grad(loss), (None, 0))(state[0], x)
        stacked = stack_module_state([flow, flow])
        several = vmap(lambda p, b, flow=flow: functional_call(flow, (p, b), (x,))[1])(*stacked)
        found.append((each, several))
    assert_close(found[1], found[0], **TOLERANCE)
