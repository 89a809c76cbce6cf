"""RealNVP: a bijection with the log-determinant of its Jacobian, and a density."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import normal
from torch import Tensor, nn

from pnf.reference import RealNVP

SMALL: dict[str, Any] = {"hidden": 4, "blocks": 1, "num_couplings": 2}
SHAPES = [
    ("conv", (1, 4, 4), {"scales": 1}),
    ("conv", (1, 4, 4), {"scales": 2}),
    ("conv", (1, 4, 4), {"scales": 3}),
    ("conv", (3, 2, 4), {"scales": 2}),
    ("conv", (1, 8, 8), {}),
    ("conv", (2, 5, 3), {}),
    ("conv", (3, 1, 1), {}),
    ("conv", (2, 7), {}),
    ("conv", (5,), {}),
    ("conv", (1,), {}),
    ("dense", (2, 3, 3), {}),
    ("dense", (1, 4, 2), {}),
    ("dense", (2, 5), {}),
    ("dense", (6,), {}),
    ("dense", (1,), {}),
]
every_shape = pytest.mark.parametrize(("coupling", "shape", "more"), SHAPES, ids=str)
every_norm = pytest.mark.parametrize("norm", ["act", "batch", "none"])
Randomise = Callable[..., nn.Module]
LogAbsDet = Callable[..., Tensor]


@pytest.fixture
def make(randomise: Randomise) -> Callable[..., RealNVP]:
    return lambda shape, **settings: randomise(RealNVP(shape, **SMALL | settings).double()).eval()


def unit(*shape: int) -> Tensor:
    return 0.01 + 0.98 * torch.rand(*shape, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def condition_for(shape: tuple[int, ...], batch: int, channels: int = 2) -> Tensor:
    return normal(batch, *shape) if len(shape) == 1 else normal(batch, channels, *shape[1:])


@every_norm
@pytest.mark.parametrize("conditional", [False, True])
@every_shape
def test_is_a_bijection_with_its_log_det(
    coupling: str,
    shape: tuple[int, ...],
    more: dict[str, int],
    conditional: bool,
    norm: str,
    make: Callable[..., RealNVP],
    log_abs_det: LogAbsDet,
) -> None:
    x = normal(2, *shape)
    condition = condition_for(shape, 2) if conditional else None
    condition_shape = None if condition is None else condition.shape[1:]
    flow = make(shape, condition_shape=condition_shape, coupling=coupling, norm=norm, **more)
    z, log_det = flow(x, condition)
    assert z.shape == (2, flow.dims)
    assert log_det.shape == (2,)
    close(log_det, log_abs_det(lambda x, c: flow(x, c)[0], x, condition))
    back, log_det_back = flow.inverse(z, condition)
    close(back, x)
    close(log_det_back, -log_det)
    noise = normal(2, flow.dims)
    close(flow(flow.inverse(noise, condition)[0], condition)[0], noise)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    close(flow.log_prob(x, condition), prior + log_det)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize(("coupling", "shape"), [("conv", (1, 4, 4)), ("dense", (3, 2, 2)), ("dense", (5,))])
def test_pixels_through_the_logit(
    coupling: str, shape: tuple[int, ...], alpha: float, make: Callable[..., RealNVP], log_abs_det: LogAbsDet
) -> None:
    flow = make(shape, coupling=coupling, alpha=alpha)
    x = unit(2, *shape)
    z, log_det = flow(x)
    close(log_det, log_abs_det(lambda x: flow(x)[0], x))
    back, log_det_back = flow.inverse(z)
    close(back, x)
    close(log_det_back, -log_det)
    close(flow.bits_per_dim(x), 8 - flow.log_prob(x) / (flow.dims * math.log(2)), 1e-12)


@pytest.mark.parametrize(("coupling", "scales"), [("conv", 1), ("conv", 2), ("dense", None)])
def test_every_output_depends_on_the_condition(coupling: str, scales: int | None, make: Callable[..., RealNVP]) -> None:
    shape = (1, 4, 4)
    flow = make(shape, condition_shape=(3, 4, 4), coupling=coupling, scales=scales, num_couplings=4)
    x, a, b = normal(2, *shape), normal(2, 3, 4, 4), normal(2, 3, 4, 4)
    assert not torch.isclose(flow(x, a)[0], flow(x, b)[0]).any()
    assert not torch.isclose(flow.log_prob(x, a), flow.log_prob(x, b)).any()
    c = a.clone().requires_grad_()
    flow.log_prob(x, c).sum().backward()
    assert c.grad.ne(0).any((0, 2, 3)).all()


@pytest.mark.parametrize(("dims", "scales"), [((1, 4, 4), 2), ((1, 4, 4), 3), ((2, 8, 8), 3)])
def test_factored_out_noise_is_handed_back_whole(
    dims: tuple[int, int, int], scales: int, make: Callable[..., RealNVP]
) -> None:
    flow = make(dims, scales=scales)
    x = normal(2, *dims)
    z, _ = flow(x)
    assert z.shape == (2, math.prod(dims))
    state = torch.get_rng_state()
    close(flow.inverse(z)[0], x)
    assert torch.equal(torch.get_rng_state(), state)
    moved = z.clone()
    moved[:, 0] += 1
    assert not torch.isclose(flow.inverse(moved)[0], x).all()


@every_norm
@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_log_prob_of_an_example_does_not_depend_on_its_batch(
    coupling: str, norm: str, make: Callable[..., RealNVP]
) -> None:
    flow = make((2, 4, 4), coupling=coupling, norm=norm)
    x = normal(4, 2, 4, 4)
    close(flow.log_prob(x), torch.cat([flow.log_prob(one) for one in x.split(1)]))


@every_norm
@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_evaluation_changes_no_state(coupling: str, norm: str, make: Callable[..., RealNVP]) -> None:
    flow = make((2, 4, 4), coupling=coupling, norm=norm)
    before = copy.deepcopy(flow.state_dict())
    flow.inverse(flow(normal(4, 2, 4, 4))[0])
    flow.sample(2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), flow.state_dict().values(), strict=True))


@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_batch_statistics_move_once_a_step(coupling: str, make: Callable[..., RealNVP]) -> None:
    flow = make((2, 4, 4), coupling=coupling, norm="batch").train()
    moves: list[str] = []
    for name, module in flow.named_modules():
        if any(key == "running_mean" for key, _ in module.named_buffers(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: moves.append(name))
    flow.log_prob(normal(8, 2, 4, 4)).sum().backward()
    assert moves
    assert len(moves) == len(set(moves))
    counts = [b.item() for name, b in flow.named_buffers() if name.endswith("num_batches_tracked")]
    assert set(counts) <= {1}


@every_norm
def test_training_approaches_evaluation_as_statistics_settle(norm: str, make: Callable[..., RealNVP]) -> None:
    flow, x = make((2, 4, 4), norm=norm).train(), normal(64, 2, 4, 4)
    for _ in range(300 if norm == "batch" else 1):
        with torch.no_grad():
            training = flow.log_prob(x)
    # Torch's batch normalisation keeps the unbiased variance, here of 1,024 entries.
    torch.testing.assert_close(flow.eval().log_prob(x), training, rtol=1e-2 if norm == "batch" else 1e-12, atol=1e-9)


@every_norm
@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_copies_and_pickles(coupling: str, norm: str, make: Callable[..., RealNVP]) -> None:
    flow, x = make((2, 4, 4), coupling=coupling, norm=norm).train(), normal(4, 2, 4, 4)
    flow.log_prob(x)
    flow.eval()
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(x), flow.log_prob(x))
        assert other.ops == flow.ops
    fresh = RealNVP((2, 4, 4), coupling=coupling, norm=norm, **SMALL).double().eval()
    fresh.load_state_dict(flow.state_dict())
    assert torch.equal(fresh.log_prob(x), flow.log_prob(x))
    assert torch.equal(fresh.train().log_prob(x), flow.train().log_prob(x))


@every_norm
@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_every_parameter_learns(coupling: str, norm: str, make: Callable[..., RealNVP]) -> None:
    flow = make((1, 4, 4), condition_shape=(1, 4, 4), coupling=coupling, norm=norm, hidden=8).train()
    # ActNorm's scale is optimal for the batch that initialises it, where its gradient would be 0.
    flow.log_prob(normal(8, 1, 4, 4), normal(8, 1, 4, 4))
    flow.log_prob(1 - normal(8, 1, 4, 4) ** 2, normal(8, 1, 4, 4)).sum().backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.ne(0).any(), name


def test_sample_is_the_inverse_of_noise(make: Callable[..., RealNVP]) -> None:
    flow = make((1, 4, 4), condition_shape=(2, 4, 4))
    condition = normal(3, 2, 4, 4)
    x = flow.sample(3, condition, temperature=0.5, generator=torch.Generator().manual_seed(7))
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    close(flow(x, condition)[0], 0.5 * z)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from(["conv", "dense"]),
    st.booleans(),
    st.sampled_from(["act", "batch", "none"]),
    st.integers(0, 3),
)
def test_any_shape_comes_back(size: list[int], coupling: str, conditional: bool, norm: str, batch: int) -> None:
    shape = tuple(size)
    condition = condition_for(shape, batch) if conditional else None
    flow = RealNVP(
        shape, condition_shape=None if condition is None else condition.shape[1:], coupling=coupling, norm=norm, **SMALL
    )
    flow = flow.double().eval()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = normal(batch, *shape)
    z, log_det = flow(x, condition)
    back, log_det_back = flow.inverse(z, condition)
    close(back, x)
    close(log_det_back, -log_det)


X = torch.rand(2, 1, 4, 4)


def plain() -> RealNVP:
    return RealNVP((1, 4, 4), **SMALL)


def conditional() -> RealNVP:
    return RealNVP((1, 4, 4), condition_shape=(2, 4, 4), **SMALL)


ERRORS = [
    (lambda: RealNVP(4), TypeError, "RealNVP: shape must be a sequence of integers, got 4"),
    (lambda: RealNVP((1, 4.0, 4)), TypeError, r"RealNVP: shape must be a sequence of integers, got \(1, 4.0, 4\)"),
    (lambda: RealNVP((1, 0, 4)), ValueError, r"RealNVP: shape must be \(C, H, W\), .*positive sizes, got \(1, 0, 4\)"),
    (lambda: RealNVP((1, 1, 4, 4)), ValueError, r"RealNVP: shape must be \(C, H, W\), \(C, D\) or \(D,\)"),
    (lambda: RealNVP((1, 4, 4), coupling="mlp"), ValueError, "RealNVP: coupling must be 'conv' or 'dense', got 'mlp'"),
    (
        lambda: RealNVP((1, 4, 4), norm="layer"),
        ValueError,
        "RealNVP: norm must be 'act' or 'batch' or 'none', got 'layer'",
    ),
    (lambda: RealNVP((1, 4, 4), alpha=0.5), ValueError, r"RealNVP: alpha must be in \[0, 0.5\) or None, got 0.5"),
    (lambda: RealNVP((1, 4, 4), hidden=0), ValueError, "RealNVP: hidden must be at least 1, got 0"),
    (lambda: RealNVP((1, 4, 4), blocks=-1), ValueError, "RealNVP: blocks must be at least 1, got -1"),
    (lambda: RealNVP((1, 4, 4), num_couplings=2.5), TypeError, "RealNVP: num_couplings must be an integer, got 2.5"),
    (lambda: RealNVP((1, 4, 4), scales=0), ValueError, "RealNVP: scales must be at least 1, got 0"),
    (
        lambda: RealNVP((1, 4, 6), scales=3),
        ValueError,
        r"RealNVP: shape must have sizes that are multiples of 4 for 3 scales, got \(1, 4, 6\)",
    ),
    (
        lambda: RealNVP((1, 4, 4), scales=2, coupling="dense"),
        ValueError,
        'RealNVP: scales must be None with coupling="dense", got 2',
    ),
    (
        lambda: RealNVP((1, 4, 4), condition_shape=(2, 4, 2)),
        ValueError,
        r"RealNVP: condition_shape must have the spatial size of shape \(1, 4, 4\), got \(2, 4, 2\)",
    ),
    (lambda: plain()(X[:, 0]), ValueError, r"RealNVP: x must be \[B, 1, 4, 4\], got \[2, 4, 4\]"),
    (lambda: plain()(X.mul(255).byte()), TypeError, "RealNVP: x must be a floating Tensor, got torch.uint8"),
    (lambda: plain().inverse(X), ValueError, r"RealNVP: z must be \[B, 16\], got \[2, 1, 4, 4\]"),
    (lambda: plain()(X, X), ValueError, "RealNVP: condition must be None, since the flow has no condition_shape"),
    (lambda: conditional()(X), ValueError, r"RealNVP: condition must be \[B, 2, 4, 4\], got None"),
    (lambda: conditional()(X, X), ValueError, r"RealNVP: condition must be \[B, 2, 4, 4\], got \[2, 1, 4, 4\]"),
    (lambda: conditional()(X, torch.rand(3, 2, 4, 4)), ValueError, "RealNVP: condition must have a batch of 2, got 3"),
    (
        lambda: RealNVP((1, 4, 4), alpha=0.05, **SMALL)(X + 1),
        ValueError,
        r"RealNVP: x must have values in \[0, 1\], got values from 1.* to ",
    ),
    (
        lambda: plain().set_network_dtype(torch.float64),
        ValueError,
        "set_network_dtype: dtype must be bfloat16, float16 or None, got torch.float64",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS, ids=[text[:50] for *_, text in ERRORS])
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
