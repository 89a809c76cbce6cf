"""pnf in zuko: lazy distributions and transformations, and couplings with the numbers of zuko's own."""

import copy
import math
from typing import Any

import pytest
import torch
from bridge_tests import EXACT, assert_module, assert_same, condition_of, given, randomised, typical
from tensors import normal
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.testing import assert_close

from pnf import RealNVP

zuko = pytest.importorskip("zuko")
bridge = pytest.importorskip("pnf.bridges.zuko")

LEADING = [(), (4,), (2, 4)]


def base(dims: int) -> Any:
    normals = zuko.distributions.DiagNormal
    return zuko.lazy.UnconditionalDistribution(normals, 0 * normal(dims), 1 + 0 * normal(dims), buffer=True)


@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_a_flow_is_a_lazy_distribution(flow: Any, leading: tuple[int, ...]) -> None:
    c = condition_of(flow, *leading)
    batch = () if c is None else leading
    found = bridge.LazyFlow(flow)(c)
    assert (found.batch_shape, found.event_shape) == (batch, flow.shape)
    assert found.sample((3,)).shape == (3, *batch, *flow.shape)
    assert found.sample().shape == (*batch, *flow.shape)
    assert found.expand((2, *batch)).sample().shape == (2, *batch, *flow.shape)
    flat = None if c is None else c.expand(3, *c.shape).flatten(0, len(leading))
    x = typical(flow, flat, 3 * math.prod(batch))
    own = flow.log_prob(x, **given(flow, flat)).reshape(3, *batch)
    assert_close(found.log_prob(x.reshape(3, *batch, *flow.shape)), own, **EXACT)


@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_a_flow_is_a_lazy_transformation(flow: Any, leading: tuple[int, ...]) -> None:
    c = condition_of(flow, *leading)
    batch = () if c is None else leading
    transform = bridge.LazyFlowTransform(flow)(c)
    flat = None if c is None else c.expand(3, *c.shape).flatten(0, len(leading))
    x = typical(flow, flat, 3 * math.prod(batch)).reshape(3, *batch, *flow.shape)
    z, log_det = transform.call_and_ladj(x)
    assert (z.shape, log_det.shape) == ((3, *batch, flow.dims), (3, *batch))
    assert transform.forward_shape(x.shape) == z.shape
    assert transform.inverse_shape(z.shape) == x.shape
    assert (transform.domain.event_dim, transform.codomain.event_dim) == (len(flow.shape), 1)
    assert_close(transform.log_abs_det_jacobian(x, z), log_det, **EXACT)
    back, inverse_log_det = transform.inv.call_and_ladj(z)
    assert_close(back, x)
    assert_close(inverse_log_det, -log_det)
    assert_close(transform.inv.inv(x), z, **EXACT)


@pytest.mark.parametrize("flow", ["vector", "features", "images"], indirect=True)
def test_a_flow_is_one_of_several_transformations(flow: Any) -> None:
    rotation = zuko.lazy.UnconditionalTransform(zuko.transforms.RotationTransform, 0.1 * normal(flow.dims, flow.dims))
    model = zuko.lazy.Flow([bridge.LazyFlowTransform(flow), rotation], base(flow.dims))
    c = condition_of(flow, 4)
    assert model(c).sample((3,)).shape == (3, *(() if c is None else (4,)), *flow.shape)
    x = typical(flow, c, 4)
    # A rotation keeps the standard normal distribution.
    assert_close(model(c).log_prob(x), bridge.LazyFlow(flow)(c).log_prob(x), rtol=1e-9, atol=1e-9)
    model(c).log_prob(x).mean().backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize("kind", ["LazyFlow", "LazyFlowTransform"])
def test_a_flow_whose_samples_leave_its_support_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^RealNVP: samples with alpha=0\.05 can leave \[0, 1\]"):
        getattr(bridge, kind)(RealNVP((4,), alpha=0.05, coupling="dense", hidden=4))


class TanhAffine(Transform):
    """The map of pnf's coupling, for zuko's own coupling."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, shift: Tensor, u: Tensor) -> None:
        super().__init__()
        self.shift, self.log_scale = shift, u.tanh()

    def _call(self, x: Tensor) -> Tensor:
        return x * self.log_scale.exp() + self.shift

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.shift) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return self.log_scale.expand(x.shape)


MASKS = {
    "every second": None,
    "half": torch.arange(6) < 3,
    "other half": torch.arange(6) >= 3,
    "any": torch.tensor([True, False, False, True, False, False]),
}


def pair(mask: str, context: int = 0) -> tuple[Any, Any]:
    """Couplings of pnf and zuko with the same weights. The network of zuko emits shift and u of a feature in turn."""
    ours = bridge.AffineCoupling(6, context, MASKS[mask], hidden_features=(8,)).double()
    theirs = zuko.flows.coupling.GeneralCouplingTransform(6, context, MASKS[mask], univariate=TanhAffine).double()
    theirs.hyper = copy.deepcopy(ours.hyper)
    last, own = theirs.hyper[-1], ours.hyper[-1]
    with torch.no_grad():
        last.weight.copy_(own.weight.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1))
        last.bias.copy_(own.bias.unflatten(0, (2, -1)).T.flatten())
    return ours, theirs


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_coupling_has_the_numbers_of_zuko(mask: str, context: int, direction: str) -> None:
    ours, theirs = pair(mask, context)
    c = normal(5, 3) if context else None

    def run(lazy: Any) -> Any:
        return lambda x: (lazy(c) if direction == "forward" else lazy(c).inv).call_and_ladj(x)

    assert_same(run(ours), run(theirs), normal(5, 6))


@pytest.mark.parametrize(("x", "c"), [((6,), (3,)), ((6,), (4, 3)), ((2, 1, 6), (4, 3)), ((4, 6), (3,))], ids=str)
def test_contexts_and_vectors_are_broadcast(x: tuple[int, ...], c: tuple[int, ...]) -> None:
    ours, theirs = pair("any", 3)
    vectors, context = normal(*x), normal(*c)
    y, log_det = ours(context).call_and_ladj(vectors)
    leading = torch.broadcast_shapes(x[:-1], c[:-1])
    assert (y.shape, log_det.shape) == ((*leading, 6), leading)
    each, _ = theirs(context).call_and_ladj(vectors.expand(*leading, 6))
    assert_close(y, each, **EXACT)


def test_couplings_make_a_flow() -> None:
    couplings = [bridge.AffineCoupling(6, 3, torch.arange(6) % 2 == i % 2, hidden_features=(8,)) for i in range(3)]
    other = zuko.flows.autoregressive.MaskedAutoregressiveTransform(6, 3, hidden_features=(8,))
    model = randomised(zuko.lazy.Flow([*couplings, other], base(6)))
    c = normal(4, 3).requires_grad_()
    x, log_prob = model(c).rsample_and_log_prob((5,))
    assert_close(log_prob, model(c).log_prob(x))
    activations = model(c).log_prob(x[0].detach())
    assert all(g is not None for g in torch.autograd.grad(activations.sum(), [c, *couplings[0].parameters()]))


def test_modules_move_and_are_saved() -> None:
    assert_module(bridge.AffineCoupling(6, 2).double(), lambda: bridge.AffineCoupling(6, 2))


@pytest.mark.parametrize("mask", [torch.ones(6), torch.zeros(6), torch.ones(5)], ids=["all", "none", "too short"])
def test_masks_that_cannot_be(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^AffineCoupling: mask must be \[6\] and keep some features but not all"):
        bridge.AffineCoupling(6, mask=mask)
