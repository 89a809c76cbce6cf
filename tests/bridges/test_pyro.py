"""Flows as distributions of Pyro: priors and likelihoods in models, plates, traces and variational inference."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bridge_tests import EXACT, condition_of, given, randomised, typical
from tensors import normal
from torch import Tensor
from torch.testing import assert_close

from pnf import RealNVP

pyro = pytest.importorskip("pyro")
bridge = pytest.importorskip("pnf.bridges.pyro")

from pyro import distributions, infer, poutine  # noqa: E402
from pyro.distributions.testing.gof import auto_goodness_of_fit  # noqa: E402


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    pyro.clear_param_store()
    with pyro.validation_enabled():
        yield
    pyro.clear_param_store()


def test_a_flow_is_a_distribution_of_pyro(flow: Any) -> None:
    condition = condition_of(flow, 4)
    found = bridge.distribution(flow, condition)
    batch = () if condition is None else (4,)
    assert found.shape((2,)) == (2, *batch, *flow.shape)
    assert (found.has_rsample, found.support.is_discrete, type(found).support.is_discrete) == (True, False, False)
    assert found.support.event_dim == found.event_dim == len(flow.shape)
    assert found((2,)).shape == (2, *batch, *flow.shape)
    x = typical(flow, condition, 4)
    own = flow.log_prob(x, **given(flow, condition))
    assert_close(found.log_prob(x), own, **EXACT)
    wide = found.expand_by((3,))
    assert type(wide) is type(found)
    assert_close(wide.log_prob(x if batch else x[:3]), own.expand(3, 4) if batch else own[:3], **EXACT)
    if batch:
        assert_close(found.to_event(1).log_prob(x), own.sum(), **EXACT)
        mask = torch.tensor([True, False, True, True])
        assert_close(found.mask(mask).log_prob(x), own * mask, **EXACT)
        assert_close(found.to_event(1).to_event(-1).log_prob(x), own, **EXACT)


def test_samples_have_the_density() -> None:
    """Pyro's own test of fit compares distances of neighbours with the density. It is exact in few dims only."""
    flow = randomised(RealNVP((2,), features=3, coupling="dense", hidden=4)).eval()
    found = bridge.distribution(flow, normal(3))
    with torch.no_grad():
        x = found.sample((6000,))
        assert auto_goodness_of_fit(x, found.log_prob(x).exp()) > 2e-3
        assert auto_goodness_of_fit(1.5 * x, found.log_prob(x).exp()) < 1e-6


@pytest.mark.parametrize("flow", ["labels", "vector"], indirect=True)
def test_traces_sum_the_density_over_plates(flow: Any) -> None:
    condition = condition_of(flow, 4)
    x = typical(flow, condition, 4)
    seen = torch.tensor([True, True, False, True])

    def model() -> Tensor:
        draws, images = pyro.plate("draws", 2, dim=-2), pyro.plate("images", 4, dim=-1)
        with draws, images, poutine.mask(mask=seen), poutine.scale(scale=0.5):
            return pyro.sample("x", bridge.distribution(flow, condition), obs=x)

    trace = poutine.trace(model).get_trace()
    own = flow.log_prob(x, condition)
    assert_close(trace.log_prob_sum(), 2 * 0.5 * own[seen].sum(), **EXACT)

    def prior() -> Tensor:
        with pyro.plate("images", 4):
            return pyro.sample("x", bridge.distribution(flow, condition))

    assert poutine.trace(prior).get_trace().nodes["x"]["value"].shape == (4, *flow.shape)


@pytest.mark.parametrize("flow", ["features"], indirect=True)
def test_a_step_of_inference_trains_the_flow_of_a_model(flow: Any) -> None:
    """The flow is the prior of latent vectors, and another flow their amortised posterior."""
    # In training mode ActNorm would start from the first samples, which are to have a gradient.
    guide_flow = randomised(RealNVP((5,), features=3, coupling="dense", hidden=4)).eval()
    observed, context = normal(8, 3), normal(8, 3)
    loading = normal(5, 3)

    def model() -> None:
        pyro.module("prior", flow)
        with pyro.plate("examples", 8):
            latent = pyro.sample("latent", bridge.distribution(flow, context))
            pyro.sample("observed", distributions.Normal(latent @ loading, 0.5).to_event(1), obs=observed)

    def guide() -> None:
        pyro.module("guide", guide_flow)
        with pyro.plate("examples", 8):
            pyro.sample("latent", bridge.distribution(guide_flow, observed))

    before = [p.detach().clone() for p in (*flow.parameters(), *guide_flow.parameters())]
    with warnings.catch_warnings():
        # Pyro looks for a device to profile, in this version by a call that PyTorch is about to remove.
        warnings.simplefilter("ignore", FutureWarning)
        inference = infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), infer.Trace_ELBO())
        losses = [inference.step() for _ in range(3)]
    after = [*flow.parameters(), *guide_flow.parameters()]
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert all(math.isfinite(loss) for loss in losses)
