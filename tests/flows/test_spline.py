"""Splines of each entry, alone and in front of the affine maps of convolutional flows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pnf import fast, reference
from pnf.flows.couplings import Injector
from pnf.flows.spline import BOUND, spline, spline_outputs

SMALL: dict[str, Any] = {"hidden": 4, "blocks": 1, "num_couplings": 2, "spline": 5}


@pytest.mark.parametrize("bins", [1, 2, 8, 64])
def test_raw_values_of_zero_are_the_identity(bins: int) -> None:
    x = torch.linspace(-6, 6, 101).view(1, 1, -1)
    y, log_det = spline(x, torch.zeros(1, spline_outputs(bins), 101), bins)
    assert_close(y, x, rtol=0, atol=1e-5)
    assert_close(log_det, torch.zeros(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bins", [1, 2, 8])
def test_log_det_is_that_of_the_derivative(bins: int) -> None:
    x = (3 * torch.randn(1, 2, 50, dtype=torch.float64)).requires_grad_()
    raw = 2 * torch.randn(1, 2 * spline_outputs(bins), 50, dtype=torch.float64)
    y, log_det = spline(x, raw, bins)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all()
    assert_close(log_det, slope.log().sum().view(1))
    back, back_log_det = spline(y.detach(), raw, bins, inverse=True)
    assert_close(back, x.detach())
    assert_close(back_log_det, -log_det.detach())


@pytest.mark.parametrize("size", [1.0, 10.0, 1e4])
def test_float32_inverts_whatever_the_network_says(size: float) -> None:
    y = BOUND * torch.rand(4, 3, 1000).mul(2).sub(1)
    raw = size * torch.randn(4, 3 * spline_outputs(12), 1000)
    x, log_det = spline(y, raw, 12, inverse=True)
    assert x.abs().max() <= BOUND
    assert log_det.isfinite().all()
    x.requires_grad_()
    again, _ = spline(x, raw, 12)
    (slope,) = torch.autograd.grad(again.sum(), x)
    assert slope.isfinite().all()
    # A steep map enlarges the rounding errors of x and of the knots.
    assert (again - y).abs().max() <= BOUND * 2**-19 * slope.max()


def test_values_outside_the_interval_and_nan_stay() -> None:
    x = torch.tensor([-torch.inf, -7.0, -BOUND, BOUND, 7.0, torch.inf, torch.nan]).view(1, 1, -1)
    raw = torch.randn(1, spline_outputs(4), 7)
    for inverse in (False, True):
        assert_close(spline(x, raw, 4, inverse=inverse)[0], x, equal_nan=True, rtol=0, atol=0)


def test_derivatives() -> None:
    x = (2 * torch.randn(1, 1, 6, dtype=torch.float64)).requires_grad_()
    raw = torch.randn(1, spline_outputs(3), 6, dtype=torch.float64, requires_grad=True)
    for inverse in (False, True):
        torch.autograd.gradcheck(lambda x, raw, inverse=inverse: spline(x, raw, 3, inverse=inverse), (x, raw))
        torch.autograd.gradgradcheck(lambda x, raw, inverse=inverse: spline(x, raw, 3, inverse=inverse), (x, raw))


def pair(
    randomise: Callable[..., nn.Module], shape: tuple[int, ...], levels: int, **settings: Any
) -> tuple[list[Any], Tensor]:
    """A flow of the reference and a compiled one with the same state, and images."""
    x = torch.rand(6, *shape)
    flows = [module.ProgressiveFlow(shape, levels, **SMALL | settings) for module in (reference, fast)]
    flows[0].train()(x)
    randomise(flows[0], 0.1)
    flows[1].load_state_dict(flows[0].state_dict())
    return flows, x


CASES: list[dict[str, Any]] = [
    {"levels": 1},
    {"levels": 1, "encoder": 1, "lattice": True},
    {"levels": 1, "injector": False, "scales": 2},
    {"levels": 0, "scales": 2, "norm": "batch"},
    {"levels": 1, "lattice": True, "memory": "invertible", "norm": "batch"},
    {"levels": 1, "injector": False, "memory": "invertible"},
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 32)], ids=str)


@every_case
@every_shape
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fast_equals_the_reference(
    randomise: Callable[..., nn.Module], shape: tuple[int, ...], case: dict[str, Any], training: bool
) -> None:
    flows, x = pair(randomise, shape, **case)
    found = []
    for flow in flows:
        log_prob = flow.train(training).log_prob(x)
        found.append([log_prob, *torch.autograd.grad(log_prob.mean(), list(flow.parameters()))])
    for want, got in zip(*found, strict=True):
        assert_close(got, want, rtol=1e-4, atol=1e-4 * max(1, want.abs().max().item()))


@every_case
@every_shape
def test_flow_is_a_bijection_with_its_log_det(
    randomise: Callable[..., nn.Module],
    shape: tuple[int, ...],
    case: dict[str, Any],
    log_abs_det: Callable[..., Tensor],
) -> None:
    (flow, _), x = pair(randomise, shape, **case)
    flow, x = flow.double().eval(), x[:1].double()
    z, log_det = flow(x)
    assert_close(log_det, log_abs_det(lambda x: flow(x)[0], x))
    back, back_log_det = flow.inverse(z)
    assert_close(back, x, rtol=0, atol=1e-8)
    assert_close(back_log_det, -log_det)


def test_splines_are_in_the_injector_or_else_in_all_couplings() -> None:
    flow = fast.ProgressiveFlow((1, 8, 8), 1, **SMALL)
    for index, stage in enumerate(flow.stages):
        bins = {type(m) is Injector: m.bins for m in stage.modules() if hasattr(m, "bins")}
        assert bins == ({False: 5} if index == 0 else {True: 5, False: 0})


def test_state_of_flows_without_splines_is_as_before() -> None:
    plain = fast.ProgressiveFlow((1, 8, 8), 1, **SMALL | {"spline": 0})
    assert {p.shape[0] for name, p in plain.named_parameters() if name.endswith("network.out.bias")} == {2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spline": -1}, "spline must be"),
        ({"spline": 65}, "spline must be at most 64 bins"),
        ({"spline": 1.5}, "spline must be"),
        ({"spline": 4, "coupling": "dense"}, 'spline must be 0 with coupling="dense"'),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fast.ProgressiveFlow((1, 8, 8), 1, **settings)
