"""A flow as one of ``torch.distributions``: what they all promise, and what they are made into."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensors import normal
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    constraints,
)
from torch.testing import assert_close

from pnf import fast, reference
from pnf.bridges._flows import Conditional
from pnf.flows.distribution import FlowDistribution
from pnf.reference import haar_bounded

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "labels": {"num_classes": 3},
    "vector": {"condition_shape": (2,)},
    "map": {"condition_shape": (1, 4, 4)},
}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(params=SETTINGS)
def found(request: pytest.FixtureRequest, randomise: Callable[..., nn.Module]) -> FlowDistribution:
    """The distribution of a random flow on real vectors, for three conditions if it has any."""
    return make(randomise, **SETTINGS[request.param])


def make(randomise: Callable[..., nn.Module], **settings: Any) -> FlowDistribution:
    flow: Any = (
        randomise(fast.ProgressiveFlow((1, 4, 4), 1, support="real", coupling="dense", hidden=4, **settings))
        .double()
        .eval()
    )
    condition = None
    if "num_classes" in settings:
        condition = torch.arange(3)
    elif settings:
        condition = normal(3, *settings["condition_shape"])
    return flow.distribution(condition)


def test_what_every_distribution_promises(found: FlowDistribution) -> None:
    shape = (2, 5, *found.batch_shape, *found.event_shape)
    x = found.sample((2, 5))
    assert x.shape == found.rsample((2, 5)).shape == shape
    assert not x.requires_grad
    assert found.rsample().requires_grad
    assert found.has_rsample
    assert not found.has_enumerate_support
    assert found.log_prob(x).shape == shape[:-3]
    assert isinstance(FlowDistribution.support, constraints._DependentProperty)
    assert (found.support.is_discrete, found.support.event_dim) == (False, 3)
    assert found.support.check(x).shape == shape[:-3]
    assert found.support.check(x).all()
    assert repr(found).startswith("FlowDistribution(")
    assert found.sample([2]).shape == found.sample((2,)).shape
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert_close(other.log_prob(x), found.log_prob(x), rtol=0, atol=0)
    with pytest.raises(NotImplementedError):
        found.entropy()


@pytest.mark.parametrize("extra", [(), (2,), (2, 1)], ids=str)
def test_an_expanded_distribution_is_the_same_many_times(found: FlowDistribution, extra: tuple[int, ...]) -> None:
    wide = found.expand((*extra, *found.batch_shape))
    assert wide.batch_shape == (*extra, *found.batch_shape)
    assert wide.flow is found.flow
    x = found.sample()
    assert_close(wide.log_prob(x), found.log_prob(x).expand(wide.batch_shape), **EXACT)
    with pytest.raises(RuntimeError, match="expand"):
        wide.expand((3, *wide.batch_shape)).expand((2, *wide.batch_shape))
    x = wide.sample((3,))
    assert x.shape == (3, *wide.batch_shape, *found.event_shape)
    assert_close(wide.log_prob(x), found.log_prob(x), **EXACT)


class Named(FlowDistribution):
    """A distribution of a user."""


def test_expand_keeps_the_class_and_the_checks(found: FlowDistribution) -> None:
    for checks in (True, False):
        named = Named(found.flow, found.condition, unit=True, batch_shape=found.batch_shape, validate_args=checks)
        wide = named.expand((2, *found.batch_shape))
        assert type(wide) is Named
        assert (wide.unit, wide._validate_args) == (True, checks)
    instance = Named.__new__(Named)
    assert found.expand((2, *found.batch_shape), instance) is instance


def test_samples_come_with_their_density(found: FlowDistribution) -> None:
    x, log_prob = found.rsample_and_log_prob((2,))
    assert x.shape == (2, *found.batch_shape, *found.event_shape)
    assert_close(log_prob, found.log_prob(x), rtol=1e-9, atol=1e-9)
    parameters = [p for p in found.flow.parameters() if p.requires_grad]
    both = [torch.autograd.grad(part.sum(), parameters, retain_graph=True) for part in (log_prob, found.log_prob(x))]
    assert_close(*both, rtol=1e-7, atol=1e-7)


def densities(flow: Any) -> tuple[Tensor, Tensor]:
    """The difference of both log-densities of samples, and the least distance of their pixels from 0 and 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        x, log_prob = flow.distribution().rsample_and_log_prob((16,))
        difference = log_prob - flow.log_prob(x)
    return difference, torch.minimum(x, 1 - x).flatten(1).amin(1)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 0.01), (torch.float64, 1e-10)], ids=str)
def test_the_densities_of_images_differ_next_to_black_and_white_alone(dtype: torch.dtype, rounding: float) -> None:
    difference, edge = densities(fast.ProgressiveFlow.from_pretrained("fashion-mnist").to(dtype))
    inside = edge >= haar_bounded.BOUNDARY
    assert 0 < inside.sum() < 16
    assert difference[inside].abs().max() < rounding
    assert difference[~inside].min() > rounding
    assert difference.max() < 250


def test_without_the_least_distance_the_densities_of_images_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least distance is the cause, and no rounding, which float64 shows up to 1e-12 from white."""
    flow = reference.ProgressiveFlow.from_pretrained("fashion-mnist").double()
    before, edge = densities(flow)
    monkeypatch.setattr(haar_bounded, "BOUNDARY", 2.0**-1000)
    after, _ = densities(flow)
    mended = (edge < 2.0**-24) & (edge > 1e-12)
    assert mended.any()
    assert before[mended].min() > 0.01
    assert after[mended].abs().max() < 1e-10


def test_independent_dims_are_summed(found: FlowDistribution) -> None:
    wide = found.expand((2, *found.batch_shape))
    joint = Independent(wide, 1 + len(found.batch_shape))
    x = joint.rsample((4,))
    assert (joint.batch_shape, joint.event_shape) == ((), (2, *found.batch_shape, 1, 4, 4))
    assert_close(joint.log_prob(x), wide.log_prob(x).flatten(1).sum(1), **EXACT)
    assert joint.expand((3,)).log_prob(x[:3]).shape == (3,)
    assert joint.support.event_dim == joint.event_shape.__len__()


def test_further_transforms_change_the_density(found: FlowDistribution) -> None:
    scaled = TransformedDistribution(found, [AffineTransform(1.0, 3.0, event_dim=3)])
    x = scaled.sample((2,))
    wanted = found.log_prob((x - 1) / 3) - 16 * torch.tensor(3.0, dtype=torch.float64).log()
    assert_close(scaled.log_prob(x), wanted)
    assert scaled.rsample((2,)).requires_grad


def test_a_mixture_over_classes_is_the_marginal_density(randomise: Callable[..., nn.Module]) -> None:
    found = make(randomise, num_classes=3)
    logits = normal(3).requires_grad_()
    mixture = MixtureSameFamily(Categorical(logits=logits), found)
    x = mixture.sample((5,))
    assert x.shape == (5, 1, 4, 4)
    each = torch.stack([found.flow.log_prob(x, torch.full((5,), label)) for label in range(3)], 1)
    assert_close(mixture.log_prob(x), (each + logits.log_softmax(0)).logsumexp(1), **EXACT)
    assert torch.autograd.grad(mixture.log_prob(x).sum(), logits)[0].any()


class Denoiser(nn.Module):
    """A model whose latent image has a flow as its prior: ``-log p(z) - log N(x; z, s)``."""

    def __init__(self, prior: FlowDistribution, x: Tensor) -> None:
        super().__init__()
        self.prior, self.x = prior, x
        self.z = nn.Parameter(x.clone())

    def forward(self) -> Tensor:
        likelihood = Normal(self.z, 0.5).log_prob(self.x).flatten(1).sum(1)
        return -(self.prior.log_prob(self.z) + likelihood).mean()


def test_a_flow_is_the_prior_of_a_model(randomise: Callable[..., nn.Module]) -> None:
    prior = make(randomise, condition_shape=(2,))
    model = Denoiser(prior, prior.sample() + 0.5 * normal(3, 1, 4, 4))
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = model()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert (prior.log_prob(model.z) > prior.log_prob(model.x)).all()


def test_what_the_flow_learns_holds_at_once(randomise: Callable[..., nn.Module]) -> None:
    found = make(randomise)
    x = found.sample((2,))
    before = found.log_prob(x)
    randomise(found.flow)
    assert (found.log_prob(x) != before).all()


def test_samples_stay_reproducible(found: FlowDistribution) -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(found.sample((2,)))
    assert torch.equal(*draws)


@pytest.mark.parametrize("checks", [True, False])
def test_values_outside_the_support(
    randomise: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, checks: bool
) -> None:
    monkeypatch.setattr(Distribution, "_validate_args", checks)
    flow: Any = randomise(fast.ProgressiveFlow((1, 4, 4), 1, coupling="dense", hidden=4)).double().eval()
    found = flow.distribution()
    assert found.support.check(found.sample((3,))).all()
    with pytest.raises(ValueError, match="support" if checks else r"values in \[0, 1\]"):
        found.log_prob(torch.full((1, 4, 4), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("support", ["unit", "real"])
def test_samples_are_in_the_support_and_have_a_density(randomise: Callable[..., nn.Module], support: str) -> None:
    flow: Any = randomise(fast.ProgressiveFlow((1, 4, 4), 1, support=support, coupling="dense", hidden=4))
    flow = flow.double().eval()
    assert_samples(flow.distribution())
    assert_samples(Conditional(flow).distribution(None))


def test_identity_details_of_images_are_no_distribution() -> None:
    flow: Any = fast.ProgressiveFlow((1, 4, 4), 1, detail="identity", coupling="dense", hidden=4)
    for make in (flow.distribution, lambda: Conditional(flow).distribution(None)):
        with pytest.raises(ValueError, match=r"^ProgressiveFlow: samples of identity details can leave \[0, 1\]"):
            make()


@pytest.mark.parametrize("alpha", [None, 0.0, 1e-6, 0.05])
def test_samples_of_realnvp_are_in_the_support_and_have_a_density(
    randomise: Callable[..., nn.Module], alpha: float | None
) -> None:
    flow: Any = randomise(fast.RealNVP((1, 4, 4), alpha=alpha, coupling="dense", hidden=4)).double().eval()
    if alpha:
        with pytest.raises(ValueError, match=rf"^RealNVP: samples with alpha={alpha:g} can leave \[0, 1\]"):
            Conditional(flow).distribution(None)
        return
    found = Conditional(flow).distribution(None)
    assert_samples(found)
    assert found.support.check(torch.full((1, 4, 4), 1.5)) == (alpha is None)


def assert_samples(found: FlowDistribution) -> None:
    x = found.sample((200,))
    assert found.support.check(x).all()
    assert found.log_prob(x).isfinite().all()
