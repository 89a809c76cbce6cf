"""Flows given labels, vectors or maps, densities of real data, and flows as distributions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pnf import fast, reference

SHAPES = {"image": (2, 4, 4), "signal": (2, 8), "vector": (8,)}
GIVEN = ["none", "labels", "many labels", "vector", "map"]


def arguments(given: str, shape: tuple[int, ...]) -> dict[str, Any]:
    spatial = shape[1:] if len(shape) > 1 else shape
    return {
        "none": {},
        "labels": {"num_classes": 5},
        "many labels": {"num_classes": 40},
        "vector": {"condition_shape": (3,)},
        "map": {"condition_shape": (2, *spatial)},
    }[given]


def condition_of(given: str, shape: tuple[int, ...], batch: int = 4) -> Tensor | None:
    settings = arguments(given, shape)
    if not settings:
        return None
    if "num_classes" in settings:
        return torch.arange(batch) % settings["num_classes"]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *settings["condition_shape"], generator=generator, dtype=torch.float64)


def make(
    randomise: Callable[..., nn.Module], given: str, shape: tuple[int, ...], coupling: str, module: Any, **settings: Any
) -> Any:
    sizes = {"hidden": 4, "blocks": 1, "num_couplings": 2}
    flow = module.ProgressiveFlow(shape, 1, coupling=coupling, **sizes, **arguments(given, shape), **settings).double()
    flow.train().log_prob(torch.rand(16, *shape, dtype=torch.float64), condition_of(given, shape, 16))
    return randomise(flow, 0.2).eval()


@pytest.mark.parametrize("support", ["unit", "real"])
@pytest.mark.parametrize("coupling", ["conv", "dense"])
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_density_is_exact(
    randomise: Callable[..., nn.Module], given: str, shape: tuple[int, ...], coupling: str, support: str
) -> None:
    flow = make(randomise, given, shape, coupling, reference, support=support)
    x, condition = torch.rand(4, *shape, dtype=torch.float64), condition_of(given, shape)
    if support == "real":
        x = 3 * x - 1
    z, log_det = flow(x, condition)
    back, inverse_log_det = flow.inverse(z, condition)
    assert_close(back, x)
    assert_close(inverse_log_det, -log_det)
    first = None if condition is None else condition[:1]
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x.unsqueeze(0), first)[0].flatten(), x[0])
    assert_close(torch.linalg.slogdet(jacobian.reshape(flow.dims, flow.dims))[1], log_det[0])
    log_prob = flow.log_prob(x, condition)
    assert_close(flow.stage_log_probs(x, condition).sum(1), log_prob)
    losses = [flow.stage_loss(x, k, condition) * n for k, n in enumerate(flow.stage_dims)]
    assert_close(-torch.stack(losses).sum(), log_prob.mean())
    assert_close(flow.distribution(condition).log_prob(x), log_prob)
    twin = fast.ProgressiveFlow(**flow.config()).double().eval()
    twin.load_state_dict(flow.state_dict())
    assert_close(twin.log_prob(x, condition), log_prob)


@pytest.mark.parametrize("coupling", ["conv", "dense"])
@pytest.mark.parametrize("given", GIVEN[1:])
def test_every_stage_and_method_follows_the_condition(
    randomise: Callable[..., nn.Module], given: str, coupling: str
) -> None:
    shape = SHAPES["image"]
    flow = make(randomise, given, shape, coupling, fast)
    condition = condition_of(given, shape)
    assert condition is not None
    other = condition.flip(0)
    x = torch.rand(4, *shape, dtype=torch.float64)
    shares = [flow.stage_log_probs(x, given) for given in (condition, other)]
    assert (shares[0] != shares[1]).all()
    low = flow.encode(x)
    for method in (
        lambda c: flow.sample(4, c, generator=torch.Generator().manual_seed(0)),
        lambda c: flow.upsample(low, condition=c, generator=torch.Generator().manual_seed(0)),
        lambda c: flow.decode(low, condition=c),
        lambda c: flow.project(x, condition=c),
        lambda c: flow.bits_per_dim(x, c),
    ):
        assert not torch.equal(method(condition), method(other))
        assert torch.equal(method(condition), method(condition))
    assert_close(flow.encode(flow.upsample(low, condition=condition)), low)
    assert_close(
        flow.sample(4, condition, generator=torch.Generator().manual_seed(0), max_memory=2**20),
        flow.sample(4, condition, generator=torch.Generator().manual_seed(0)),
    )


def test_gradients_reach_the_embedding_of_one_stage_only(randomise: Callable[..., nn.Module]) -> None:
    flow = make(randomise, "labels", SHAPES["image"], "conv", fast, memory="invertible")
    x = torch.rand(4, *SHAPES["image"], dtype=torch.float64)
    flow.train().stage_loss(x, 1, torch.tensor([0, 1, 1, 3])).backward()
    touched = {name for name, p in flow.named_parameters() if p.grad is not None and p.grad.any()}
    assert "stages.1.embedding.weight" in touched
    assert {name.split(".")[1] for name in touched} == {"1"}
    assert not flow.stages[1].embedding.weight.grad[[2, 4]].any()


def test_a_map_is_seen_averaged_to_the_resolution_of_each_stage(randomise: Callable[..., nn.Module]) -> None:
    flow = make(randomise, "map", SHAPES["image"], "conv", reference)
    condition, x = torch.rand(4, 2, 4, 4, dtype=torch.float64), torch.rand(4, 2, 4, 4, dtype=torch.float64)
    blurred = condition.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5), keepdim=True).expand(-1, -1, 2, 2, 2, 2)
    blurred = blurred.reshape(condition.shape)
    shares = [flow.stage_log_probs(x, given) for given in (condition, blurred)]
    # The flows of f0 and f1x work at 2x2 pixels, that of f1y at 2x4.
    assert_close(shares[0][:, :2], shares[1][:, :2])
    assert (shares[0][:, 2] != shares[1][:, 2]).all()


def test_conditional_flows_come_back(randomise: Callable[..., nn.Module], tmp_path: Any) -> None:
    for given in GIVEN[1:]:
        flow = make(randomise, given, SHAPES["image"], "dense", fast)
        flow.save_pretrained(tmp_path)
        other = fast.ProgressiveFlow.from_pretrained(tmp_path)
        x, condition = torch.rand(4, *SHAPES["image"], dtype=torch.float64), condition_of(given, SHAPES["image"])
        assert torch.equal(other.log_prob(x, condition), flow.log_prob(x, condition))


@pytest.mark.parametrize(("given", "batch_shape"), [("none", ()), ("labels", (4,)), ("vector", (4,)), ("map", (4,))])
@pytest.mark.parametrize("settings", [{}, {"support": "real"}], ids=["unit", "real"])
def test_distribution(
    randomise: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    batch_shape: tuple[int, ...],
    settings: dict[str, Any],
) -> None:
    # torch.compile turns the checks of all distributions off.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    shape = SHAPES["image"]
    flow = make(randomise, given, shape, "dense", fast, **settings)
    found = flow.distribution(condition_of(given, shape))
    assert isinstance(found, torch.distributions.Distribution)
    assert (found.batch_shape, found.event_shape) == (batch_shape, shape)
    x = found.rsample((3, 2))
    assert x.shape == (3, 2, *batch_shape, *shape)
    assert found.support.check(x).all()
    assert found.sample().shape == (*batch_shape, *shape)
    assert not found.sample().requires_grad
    assert found.log_prob(x).shape == (3, 2, *batch_shape)
    assert_close(found.log_prob(x)[1, 1], found.log_prob(x[1, 1]))
    found.log_prob(x).sum().backward()
    assert all(p.grad is not None for p in flow.parameters() if p.requires_grad)
    wider = found.expand((5, *batch_shape))
    assert wider.sample((2,)).shape == (2, 5, *batch_shape, *shape)
    assert wider.log_prob(x[0, 0]).shape == (5, *batch_shape)
    with pytest.raises(ValueError, match=r"^FlowDistribution: value must be \[\.\.\., 2, 4, 4\], got \[3, 2, "):
        found.log_prob(x[..., :-1])
    if not settings:
        with pytest.raises(ValueError, match="support"):
            found.log_prob(x + 2)
    mixture = torch.distributions.Independent(found.expand((4,)), 1)
    assert mixture.log_prob(mixture.sample()).shape == ()


def test_the_reparameterised_gradient_is_that_of_the_samples(randomise: Callable[..., nn.Module]) -> None:
    flow = make(randomise, "vector", (4,), "dense", fast, support="real")
    condition = torch.randn(3, 3, dtype=torch.float64).requires_grad_()

    def mean(condition: Tensor) -> Tensor:
        torch.manual_seed(0)
        return flow.distribution(condition).rsample((8,)).square().mean()

    assert torch.autograd.gradcheck(mean, condition)


@pytest.mark.parametrize("module", [fast, reference])
@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be an integer, got 2.5"),
        ({"num_classes": 2, "condition_shape": (2,)}, ValueError, "either num_classes or condition_shape, got both"),
        ({"condition_shape": (2, 4, 2)}, ValueError, r"condition_shape must be \(F,\) or \(C, 4, 4\), got \(2, 4, 2\)"),
        ({"condition_shape": (2, 4)}, ValueError, r"condition_shape must be \(F,\) or \(C, 4, 4\)"),
        ({"condition_shape": (0,)}, ValueError, r"condition_shape must be \(F,\) or \(C, 4, 4\)"),
        ({"condition_shape": 3}, TypeError, "condition_shape must be a sequence of integers, got 3"),
        ({"support": "positive"}, ValueError, "support must be 'unit' or 'real', got 'positive'"),
        ({"support": "real", "detail": "bounded"}, ValueError, 'with support="real", detail must be "identity"'),
        (
            {"support": "real", "alpha": 0.1},
            ValueError,
            'with support="real", detail must be "identity" and alpha None',
        ),
    ],
    ids=str,
)
def test_flows_that_cannot_be(module: Any, settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^ProgressiveFlow: .*{message}"):
        module.ProgressiveFlow((1, 4, 4), 1, coupling="dense", hidden=4, **settings)


LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("given", "condition", "kind", "message"),
    [
        ("none", LABELS, ValueError, "condition must be None, since the flow has neither num_classes nor condition_s"),
        ("labels", None, ValueError, r"condition must be labels \[B\], got None"),
        ("labels", [0, 1], TypeError, "condition must be an integer Tensor of labels, got list"),
        ("labels", LABELS.float(), TypeError, "condition must be an integer Tensor of labels, got torch.float32"),
        ("labels", LABELS.view(2, 1), ValueError, r"condition must be labels \[B\], got \[2, 1\]"),
        ("labels", LABELS[:1], ValueError, "condition must have a batch of 2, got 1"),
        ("labels", LABELS + 4, ValueError, "condition must have labels from 0 to 4, got 4 to 5"),
        ("labels", LABELS - 1, ValueError, "condition must have labels from 0 to 4, got -1 to 0"),
        ("vector", None, ValueError, r"condition must be \[B, 3\], got None"),
        ("vector", torch.zeros(2, 4), ValueError, r"condition must be \[B, 3\], got \[2, 4\]"),
        ("vector", LABELS, TypeError, "condition must be a floating Tensor, got torch.int64"),
        ("vector", torch.zeros(3, 3), ValueError, "condition must have a batch of 2, got 3"),
        ("map", torch.zeros(2, 2, 2, 2), ValueError, r"condition must be \[B, 2, 4, 4\], got \[2, 2, 2, 2\]"),
    ],
    ids=str,
)
def test_wrong_conditions(given: str, condition: Any, kind: type[Exception], message: str) -> None:
    settings = arguments(given, (1, 4, 4))
    flow = fast.ProgressiveFlow((1, 4, 4), 1, coupling="dense", hidden=4, **settings)
    x = torch.rand(2, 1, 4, 4)
    calls = [flow.log_prob, flow, flow.stage_log_probs, flow.bits_per_dim]
    low = flow.encode(x)
    for call in (
        *(lambda c, f=f: f(x, c) for f in calls),
        lambda c: flow.inverse(x.flatten(1), c),
        lambda c: flow.stage_loss(x, 0, c),
        lambda c: flow.sample(2, c),
        lambda c: flow.upsample(low, condition=c),
        lambda c: flow.decode(low, condition=c),
        lambda c: flow.project(x, condition=c),
    ):
        with pytest.raises(kind, match=f"^ProgressiveFlow: {message}"):
            call(condition)


def test_real_data_has_no_bits() -> None:
    flow = fast.ProgressiveFlow((1, 4, 4), 1, coupling="dense", hidden=4, support="real")
    with pytest.raises(ValueError, match='bits_per_dim is of images in \\[0, 1\\]; with support="real" use log_prob'):
        flow.bits_per_dim(torch.randn(2, 1, 4, 4))
