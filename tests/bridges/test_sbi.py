"""Flows in sbi: estimators with the flow's numbers, and posteriors that are known."""

import copy
import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from bridge_tests import EXACT, assert_module, condition_of, given, typical
from tensors import normal
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pnf import ProgressiveFlow, RealNVP

sbi = pytest.importorskip("sbi")
bridge = pytest.importorskip("pnf.bridges.sbi")

from sbi.inference import NLE, NPE  # noqa: E402

CONDITIONAL = ["vector", "map", "features"]


@pytest.mark.parametrize("flow", CONDITIONAL, indirect=True)
def test_an_estimator_has_the_numbers_of_its_flow(flow: Any) -> None:
    shift, scale = 0.2, 1.5
    estimator = bridge.FlowEstimator(flow, shift=shift, scale=scale)
    condition = condition_of(flow, 4)
    x = typical(flow, condition, 4)
    own = flow.log_prob(x, **given(flow, condition)) - flow.dims * math.log(scale)
    inputs = x * scale + shift
    assert (estimator.input_shape, estimator.condition_shape) == (flow.shape, condition.shape[1:])
    assert_close(estimator.log_prob(inputs, condition), own[None], rtol=1e-9, atol=1e-9)
    assert_close(estimator.log_prob(inputs.expand(3, *inputs.shape), condition), own.expand(3, 4), rtol=1e-9, atol=1e-9)
    assert_close(estimator.log_prob(inputs[None, :1], condition).shape, (1, 4))
    assert_close(estimator.log_prob(inputs, condition[None].expand(2, *condition.shape)), own.expand(2, 4))
    assert_close(estimator.loss(inputs, condition), -own, rtol=1e-9, atol=1e-9)
    z = estimator.inverse_transform(inputs, condition)
    assert_close(z, flow(x, **given(flow, condition))[0], rtol=1e-9, atol=1e-9)
    assert estimator.inverse_transform(inputs[:, None], condition).shape == (4, 4, flow.dims)
    assert estimator.sample((2, 3), condition).shape == (2, 3, 4, *flow.shape)
    assert estimator.sample((), condition).shape == (4, *flow.shape)
    drawn, log_prob = estimator.sample_and_log_prob((2,), condition)
    if len(flow.shape) == 1:
        assert_close(log_prob, estimator.log_prob(drawn, condition))
    loss = estimator.loss(inputs, condition).mean()
    assert all(g is not None for g in torch.autograd.grad(loss, list(flow.parameters())))
    with pytest.raises(ValueError, match="condition"):
        estimator.log_prob(inputs, condition[..., :-1])
    with pytest.raises(ValueError, match="input"):
        estimator.log_prob(inputs[..., :-1], condition)


def test_a_flow_whose_samples_leave_its_support_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^RealNVP: samples with alpha=0\.05 can leave \[0, 1\]"):
        bridge.FlowEstimator(RealNVP((4,), features=2, alpha=0.05, coupling="dense", hidden=4))


def test_shift_and_scale_are_where_the_flow_is() -> None:
    with torch.device("meta"):
        flow = RealNVP((4,), features=2, coupling="dense", hidden=4)
    estimator = bridge.FlowEstimator(flow, shift=torch.zeros(4), scale=2.0)
    assert estimator.shift.device == estimator.scale.device == torch.device("meta")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, torch.tensor([1.0, 1.0, 1.0, -1.0])], ids=str)
def test_a_scale_that_is_not_positive_is_refused(scale: Any) -> None:
    flow = RealNVP((4,), features=2, coupling="dense", hidden=4)
    with pytest.raises(ValueError, match=r"^FlowEstimator: scale must be positive$"):
        bridge.FlowEstimator(flow, scale=scale)


def test_estimators_move_and_are_saved() -> None:
    def make() -> nn.Module:
        theta, x = torch.randn(64, 3), torch.randn(64, 1, 4, 4)
        return bridge.build_posterior(theta, x, nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), hidden=8)

    estimator = make().double()
    assert_module(estimator, make)
    theta, x = normal(5, 3), normal(5, 1, 4, 4)
    assert_close(copy.deepcopy(estimator).log_prob(theta, x), estimator.log_prob(theta, x), **EXACT)


def test_simulations_are_standardised() -> None:
    theta, x = 100 + 7 * torch.randn(500, 3), 1e-3 * torch.randn(500, 2)
    theta[:, 2] = 5
    estimator = bridge.build_posterior(theta, x, hidden=8)
    # ActNorm has seen the simulations, so the flow begins near the independent normal distribution of their moments.
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(7)) + 0.5 * math.log(2 * math.pi)
    assert abs(estimator.loss(theta, x).mean().item() - entropy) < 0.6
    assert all(bool(m.initialized) for m in estimator.modules() if hasattr(m, "initialized"))


@pytest.mark.parametrize("kind", [ProgressiveFlow, RealNVP])
def test_flows_without_a_condition(kind: Any) -> None:
    flow = kind((4,), 1, coupling="dense") if kind is ProgressiveFlow else kind((4,), coupling="dense")
    with pytest.raises(ValueError, match=r"^FlowEstimator: flow must have a vector or a map as its condition"):
        bridge.FlowEstimator(flow)


def posterior(design: Tensor, noise: float, x: Tensor) -> MultivariateNormal:
    """That of ``theta ~ N(0, I)`` given ``x ~ N(design theta, noise^2 I)``."""
    precision = torch.eye(design.shape[1]) + design.T @ design / noise**2
    return MultivariateNormal(torch.linalg.solve(precision, design.T @ x / noise**2), precision_matrix=precision)


def trained(kind: Any, theta: Tensor, x: Tensor, prior: Any, build: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference = kind(prior, density_estimator=build, show_progress_bars=False)
        inference.append_simulations(theta, x)
        inference.train(training_batch_size=200, learning_rate=2e-3, max_num_epochs=30)
    return inference


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("images", [False, True])
def test_posteriors_of_a_linear_gaussian_simulator(images: bool) -> None:
    shape = (1, 4, 4) if images else (5,)
    design, noise = torch.randn(math.prod(shape), 3), 0.7 * math.prod(shape) ** 0.5 / 2
    prior = MultivariateNormal(torch.zeros(3), torch.eye(3))
    theta = prior.sample((4000,))
    x = (theta @ design.T + noise * torch.randn(4000, len(design))).reshape(-1, *shape)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6))
    build = partial(bridge.build_posterior, embedding_net=network if images else None, num_couplings=4, hidden=32)
    found = trained(NPE, theta, x, prior, build).build_posterior()
    observed = (torch.tensor([0.5, -1.0, 0.3]) @ design.T).reshape(1, *shape)
    exact = posterior(design, noise, observed.flatten())
    draws = found.sample((3000,), x=observed, show_progress_bars=False)
    deviation = exact.stddev
    assert ((draws.mean(0) - exact.mean).abs() < 0.35 * deviation).all()
    assert ((draws.std(0) / deviation).log().abs() < 0.25).all()
    points = exact.sample((500,))
    # The mean difference of the log-densities is the KL divergence.
    assert abs((exact.log_prob(points) - found.log_prob(points, x=observed)).mean().item()) < 0.2


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_a_likelihood_of_a_linear_gaussian_simulator() -> None:
    design, noise = torch.randn(4, 2), 0.5
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((4000,))
    x = theta @ design.T + noise * torch.randn(4000, 4)
    build = partial(bridge.build_likelihood, num_couplings=4, hidden=32)
    estimator = trained(NLE, theta, x, prior, build)._neural_net
    log_prob = estimator.log_prob(x[:500], theta[:500])[0]
    exact = torch.distributions.Normal(theta[:500] @ design.T, noise).log_prob(x[:500]).sum(1)
    assert abs((exact - log_prob).mean().item()) < 0.15


def test_networks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^embedding_net must return \[B, F\], got \[2, 1, 4, 4\]"):
        bridge.build_posterior(torch.randn(9, 2), torch.randn(9, 1, 4, 4), nn.Identity())
