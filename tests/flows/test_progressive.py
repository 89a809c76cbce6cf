"""ProgressiveFlow: the paper's section 2 and the public contract."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from pnf.flows.progressive import mix_channels
from pnf.reference import OPS, ProgressiveFlow, haar_pyramid, haar_split

SMALL: dict[str, Any] = {"hidden": 4, "blocks": 1, "num_couplings": 2}


class Layout(NamedTuple):
    """Arguments of a ProgressiveFlow, and the shapes that its stages must make."""

    shape: tuple[int, ...]
    levels: int
    axes: str
    stage_shapes: list[tuple[int, ...]]
    stage_names: list[str]


LAYOUTS = [
    Layout((8,), 2, "xy", [(2,), (4,), (8,)], ["f0", "f1x", "f2x"]),
    Layout((2, 6), 1, "xy", [(2, 3), (2, 6)], ["f0", "f1x"]),
    Layout((1, 4), 2, "yx", [(1, 1), (1, 2), (1, 4)], ["f0", "f1x", "f2x"]),
    Layout((1, 4, 4), 1, "xy", [(1, 2, 2), (1, 2, 4), (1, 4, 4)], ["f0", "f1x", "f1y"]),
    Layout((1, 4, 4), 1, "yx", [(1, 2, 2), (1, 4, 2), (1, 4, 4)], ["f0", "f1y", "f1x"]),
    Layout(
        (1, 4, 8),
        2,
        "xy",
        [(1, 1, 2), (1, 1, 4), (1, 2, 4), (1, 2, 8), (1, 4, 8)],
        ["f0", "f1x", "f1y", "f2x", "f2y"],
    ),
    Layout((2, 3, 4), 2, "x", [(2, 3, 1), (2, 3, 2), (2, 3, 4)], ["f0", "f1x", "f2x"]),
    Layout((2, 4, 3), 1, "y", [(2, 2, 3), (2, 4, 3)], ["f0", "f1y"]),
    Layout(
        (1, 8, 8),
        3,
        "yx",
        [(1, 1, 1), (1, 2, 1), (1, 2, 2), (1, 4, 2), (1, 4, 4), (1, 8, 4), (1, 8, 8)],
        ["f0", "f1y", "f1x", "f2y", "f2x", "f3y", "f3x"],
    ),
    Layout((3, 3, 5), 0, "xy", [(3, 3, 5)], ["f0"]),
]
every_layout = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda layout: f"{layout.shape} {layout.levels}{layout.axes}"
)
every_coupling = pytest.mark.parametrize("coupling", ["conv", "dense"])
every_detail = pytest.mark.parametrize("detail", ["bounded", "identity"])
Randomise = Callable[..., nn.Module]
Make = Callable[..., ProgressiveFlow]


@pytest.fixture
def make(randomise: Randomise) -> Make:
    return lambda shape, levels, **kw: randomise(ProgressiveFlow(shape, levels, **SMALL | kw).double()).eval()


def pixels(*shape: int) -> Tensor:
    return 0.02 + 0.96 * torch.rand(*shape, dtype=torch.float64)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def log_normal(z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)


# A bijection with a density


@every_detail
@every_coupling
@every_layout
def test_is_a_bijection_with_its_log_det(
    layout: Layout, coupling: str, detail: str, make: Make, log_abs_det: Callable[..., Tensor]
) -> None:
    flow = make(layout.shape, layout.levels, axes=layout.axes, coupling=coupling, detail=detail)
    x = pixels(2, *layout.shape)
    z, log_det = flow(x)
    assert z.shape == (2, math.prod(layout.shape))
    assert log_det.shape == (2,)
    close(log_det, log_abs_det(lambda x: flow(x)[0], x))
    back, log_det_back = flow.inverse(z)
    close(back, x)
    close(log_det_back, -log_det)
    close(log_det_back, log_abs_det(lambda z: flow.inverse(z)[0], z))


@every_detail
@every_coupling
@every_layout
def test_likelihoods(layout: Layout, coupling: str, detail: str, make: Make) -> None:
    flow = make(layout.shape, layout.levels, axes=layout.axes, coupling=coupling, detail=detail)
    x, dims = pixels(3, *layout.shape), math.prod(layout.shape)
    assert flow.stage_shapes == layout.stage_shapes
    assert flow.stage_names == layout.stage_names
    assert flow.dims == dims == sum(flow.stage_dims)
    assert len(flow.stages) == len(flow.stage_dims) == len(layout.stage_shapes)
    z, log_det = flow(x)
    log_prob, shares = flow.log_prob(x), flow.stage_log_probs(x)
    assert log_prob.shape == flow.bits_per_dim(x).shape == (3,)
    assert shares.shape == (3, len(layout.stage_shapes))
    close(log_prob, log_normal(z) + log_det)
    close(shares.sum(1), log_prob)
    close(flow.bits_per_dim(x), 8 - log_prob / (dims * math.log(2)), 1e-12)
    for k, size in enumerate(flow.stage_dims):
        loss = flow.stage_loss(x, k)
        assert loss.shape == ()
        close(loss, -shares[:, k].mean() / size)


@every_detail
@every_coupling
def test_a_stage_loss_is_about_its_own_parameters(coupling: str, detail: str, make: Make) -> None:
    flow, x = make((1, 4, 4), 1, coupling=coupling, detail=detail), pixels(3, 1, 4, 4)
    losses = [flow.stage_loss(x, k) for k in range(3)]
    for k, loss in enumerate(losses):
        flow.zero_grad()
        loss.backward()
        for i, stage in enumerate(flow.stages):
            for name, p in stage.named_parameters():
                assert (p.grad is not None) == (i == k), f"loss {k}, stage {i}: {name}"


@every_coupling
def test_a_stage_loss_moves_the_statistics_of_its_stage_only(coupling: str, make: Make) -> None:
    flow, x = make((1, 4, 4), 1, coupling=coupling, norm="batch").train(), pixels(8, 1, 4, 4)
    for k in range(3):
        before = copy.deepcopy(flow.state_dict())
        flow.stage_loss(x, k)
        changed = {name.split(".")[1] for name, value in flow.state_dict().items() if not value.equal(before[name])}
        assert changed == {str(k)}


@every_detail
@every_coupling
def test_every_parameter_learns(coupling: str, detail: str, make: Make) -> None:
    flow = make((2, 4, 4), 1, coupling=coupling, detail=detail, hidden=8).train()
    # ActNorm's scale is optimal for the batch that initialises it, where its gradient would be 0.
    flow.log_prob(pixels(8, 2, 4, 4))
    flow.log_prob(1 - pixels(8, 2, 4, 4) ** 2).mean().backward()
    for name, p in flow.named_parameters():
        assert p.requires_grad, name
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.ne(0).any(), name


@every_detail
@every_coupling
def test_derivatives_in_x(coupling: str, detail: str, make: Make) -> None:
    flow, x = make((1, 2, 4), 1, coupling=coupling, detail=detail), pixels(2, 1, 2, 4).requires_grad_()
    assert gradcheck(flow.log_prob, x)
    assert gradgradcheck(flow.log_prob, x)


@every_detail
@every_coupling
def test_function_transforms(coupling: str, detail: str, make: Make) -> None:
    flow, x = make((1, 4, 4), 1, coupling=coupling, detail=detail), pixels(3, 1, 4, 4)
    z, log_det = flow(x)

    def one(x: Tensor) -> Tensor:
        return flow(x.unsqueeze(0))[0][0]

    jacobian = torch.func.jacrev(one)(x[0])
    close(torch.linalg.slogdet(jacobian.reshape(16, 16)).logabsdet, log_det[0])
    close(torch.vmap(one)(x), z)
    close(torch.vmap(lambda x: flow.log_prob(x.unsqueeze(0))[0])(x), flow.log_prob(x))
    seen = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(flow.log_prob(seen).sum(), seen)
    close(torch.vmap(torch.func.grad(lambda x: flow.log_prob(x.unsqueeze(0))[0]))(x), want)


# The constants of ⊕


@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 4), (2, 3, 2, 4), (1, 8, 3, 3)])
def test_mix_channels(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, dtype=torch.float64)
    y = mix_channels(x)
    close(y.square().sum(1), x.square().sum(1))
    close(mix_channels(y, inverse=True), x)
    # The first channel is the scaled mean of all.
    close(y[:, 0], x.sum(1) / shape[1] ** 0.5)
    close(mix_channels(torch.ones_like(x))[:, 1:], torch.zeros_like(x[:, 1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mix_channels_keeps_its_precision_under_autocast(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mix_channels(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, mix_channels(x.double()).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "want"), [((1, 32, 32), -665.4213), ((3, 32, 32), -1996.2639), ((3, 64, 64), -7985.0556)]
)
def test_the_constants_of_a_whole_flow(shape: tuple[int, int, int], want: float) -> None:
    flow = ProgressiveFlow(shape, 2, detail="identity", **SMALL).double().eval()
    with torch.no_grad():
        for p in flow.parameters():
            p.zero_()
    x = pixels(1, *shape)
    z, _ = flow(x)
    base, details = haar_pyramid(x, 2)
    details_as_noise = z[:, base.numel() :]
    # Each stage may order its pixels as it likes.
    close(details_as_noise.sort(1).values, torch.cat([d.flatten(1) for d in details], 1).sort(1).values, 1e-12)
    constant = flow.stage_log_probs(x)[:, 1:].sum() - log_normal(details_as_noise)[0]
    assert constant.item() == pytest.approx(want, abs=1e-4)
    assert -constant.item() / (flow.dims * math.log(2)) == pytest.approx(0.9375, abs=1e-9)


# Densities integrate to one: the trapezoidal rule in coordinates that cover the line


def line(reach: float, n: int) -> tuple[Tensor, float]:
    """Points on [-reach, reach] and the weight of each."""
    return torch.linspace(-reach, reach, n, dtype=torch.float64), 2 * reach / (n - 1)


def mean_points(n: int) -> tuple[Tensor, Tensor]:
    """All of (0, 1), and weights: ``s = sigmoid(y)``."""
    y, dy = line(9, n)
    s = y.sigmoid()
    return s, s * (1 - s) * dy


def detail_points(detail: str, s: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """All d that a mean s allows, and weights: ``d = min(s, 1 - s) tanh(w)``, or ``sinh(w)`` if d is unbounded."""
    w, dw = line(8 if detail == "bounded" else 6, n)
    if detail == "identity":
        return w.sinh(), w.cosh() * dw
    m = torch.minimum(s, 1 - s)
    return m * w.tanh(), m / w.cosh() ** 2 * dw


@pytest.fixture
def make_narrow(make: Make) -> Make:
    """Flows with nearly all mass at points that float64 distinguishes from 0 and 1."""

    def of(*args: Any, **kw: Any) -> ProgressiveFlow:
        torch.manual_seed(1)  # random parameters with this property
        flow = make(*args, norm="act", alpha=1e-6, **kw)
        with torch.no_grad():
            for name, p in flow.named_parameters():
                if name.endswith("log_scale"):
                    p.add_(0.5)
        return flow

    return of


@every_detail
@every_coupling
@pytest.mark.parametrize("shape", [(2,), (1, 1, 2), (1, 2, 1)])
def test_a_density_of_two_pixels_integrates_to_one(
    shape: tuple[int, ...], coupling: str, detail: str, make_narrow: Make
) -> None:
    flow = make_narrow(shape, 1, axes="y" if shape == (1, 2, 1) else "x", coupling=coupling, detail=detail)
    s, ds = (t.unsqueeze(1) for t in mean_points(301))
    d, dd = detail_points(detail, s, 301)
    x = torch.stack((s + d, s - d), -1).view(-1, *shape)
    with torch.no_grad():
        if detail == "bounded":
            log_prob = flow.log_prob(x)
        else:
            # The density of identity details does not end at [0, 1], though log_prob does.
            log_prob = sum(stage.log_prob(y) for stage, y in zip(flow.stages, (flow.downsample(x, 1), x), strict=True))
            inside = (x.flatten(1).amin(1) >= 0) & (x.flatten(1).amax(1) <= 1)
            close(log_prob[inside], flow.log_prob(x[inside]))
        # dx = 2 ds dd
        mass = (log_prob.exp().view(301, 301) * 2 * ds * dd).sum()
    # The networks' ReLUs bend the density, and so does min(s, 1 - s); with 1,001 points the error is below 1e-5.
    assert mass.item() == pytest.approx(1, abs=2e-4)


@every_detail
@every_coupling
@pytest.mark.parametrize("s", [(0.3, 0.6), (0.05, 0.5), (0.9, 0.95)])
def test_a_conditional_density_integrates_to_one(
    s: tuple[float, float], coupling: str, detail: str, make_narrow: Make
) -> None:
    flow = make_narrow((4,), 1, coupling=coupling, detail=detail)
    mean = torch.tensor(s, dtype=torch.float64)
    (d0, w0), (d1, w1) = (detail_points(detail, m, 301) for m in mean)
    d = torch.cartesian_prod(d0, d1)
    x = torch.stack((mean + d, mean - d), -1).flatten(1)
    with torch.no_grad():
        # dx = 2 ds dd for each of the two pairs, and the stage gives a density of x.
        density = (flow.stages[1].log_prob(x) + 2 * math.log(2)).exp().view(301, 301)
    assert (density * w0.unsqueeze(1) * w1).sum().item() == pytest.approx(1, abs=2e-4)


# Up and down


@every_detail
@every_coupling
@every_layout
def test_down_and_up(layout: Layout, coupling: str, detail: str, make: Make) -> None:
    flow = make(layout.shape, layout.levels, axes=layout.axes, coupling=coupling, detail=detail)
    last = len(flow.stages) - 1
    x = pixels(2, *layout.shape)
    images = [flow.downsample(x, last - k) for k in range(last + 1)]
    assert [tuple(image.shape[1:]) for image in images] == layout.stage_shapes
    assert torch.equal(images[-1], x)
    assert torch.equal(images[0], flow.encode(x))
    axes = layout.axes if len(layout.shape) == 3 else "x"
    close(images[0], haar_pyramid(x, layout.levels, axes)[0])
    for k, image in enumerate(images):
        for steps in range(last + 1 - k):
            for u in (None, 0, 0.0, noise(2, sum(flow.stage_dims[k + 1 : k + 1 + steps]))):
                grown = flow.upsample(image, steps, noise=u)
                assert tuple(grown.shape[1:]) == layout.stage_shapes[k + steps]
                close(flow.downsample(grown, steps), image)
        assert torch.equal(flow.upsample(image, noise=0), flow.upsample(image, last - k, noise=0))


@every_detail
@every_coupling
@every_layout
def test_projection(layout: Layout, coupling: str, detail: str, make: Make) -> None:
    flow = make(layout.shape, layout.levels, axes=layout.axes, coupling=coupling, detail=detail)
    x = pixels(2, *layout.shape)
    small = flow.encode(x)
    once = flow.project(x)
    assert torch.equal(once, flow.decode(small))
    close(flow.encode(once), small)
    close(flow.project(once), once)


@every_detail
@every_coupling
def test_pieces_of_noise_are_the_whole(coupling: str, detail: str, make: Make) -> None:
    flow = make((1, 4, 8), 2, coupling=coupling, detail=detail)
    z, _ = flow(pixels(2, 1, 4, 8))
    first, *rest = z.split(flow.stage_dims, 1)
    base = flow.stages[0].inverse(None, first)[0]
    whole = flow.upsample(base, noise=torch.cat(rest, 1))
    image = base
    for u in rest:
        image = flow.upsample(image, 1, noise=u)
    close(image, whole, 1e-12)
    close(whole, flow.inverse(z)[0], 1e-12)


@every_coupling
def test_upsampling_draws_what_the_generator_says(coupling: str, make: Make) -> None:
    flow = make((1, 4, 4), 1, coupling=coupling)
    base = pixels(2, 1, 2, 2)
    u = torch.randn(2, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = flow.upsample(base, temperature=0.7, generator=torch.Generator().manual_seed(3))
    close(drawn, flow.upsample(base, noise=0.7 * u), 1e-12)
    assert torch.equal(flow.upsample(base, temperature=0), flow.upsample(base, noise=0))


@every_coupling
def test_each_stage_may_have_its_own_temperature(coupling: str, make: Make) -> None:
    flow = make((1, 4, 4), 1, coupling=coupling)
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scaled = torch.cat((0.7 * z[:, :4], 0 * z[:, 4:8], 1.5 * z[:, 8:]), 1)
    drawn = flow.sample(2, temperature=[0.7, 0.0, 1.5], generator=torch.Generator().manual_seed(3))
    close(drawn, flow.inverse(scaled)[0], 1e-12)
    whole, single = (
        flow.sample(2, temperature=t, generator=torch.Generator().manual_seed(3)) for t in ([0.7] * 3, 0.7)
    )
    assert torch.equal(whole, single)

    base = pixels(2, 1, 2, 2)
    u = torch.randn(2, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grown = flow.upsample(base, temperature=(0.5, 2), generator=torch.Generator().manual_seed(3))
    close(grown, flow.upsample(base, noise=torch.cat((0.5 * u[:, :4], 2 * u[:, 4:]), 1)), 1e-12)
    assert torch.equal(flow.upsample(base, 0, temperature=[]), base)


# Samples


@every_detail
@every_coupling
def test_samples_repeat_with_a_generator_and_leave_the_global_one_alone(coupling: str, detail: str, make: Make) -> None:
    flow = make((1, 4, 4), 1, coupling=coupling, detail=detail)
    state = torch.get_rng_state()
    a, b, c = (flow.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert a.shape == (3, 1, 4, 4)
    assert torch.equal(a, b)
    assert not torch.isclose(a, c).all()
    assert flow.sample(0).shape == (0, 1, 4, 4)
    cold = flow.sample(2, temperature=0)
    close(cold, flow.inverse(torch.zeros(2, 16, dtype=torch.float64))[0], 1e-12)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("levels", [0, 2])
@every_coupling
def test_every_bounded_sample_is_an_image(
    coupling: str, levels: int, dtype: torch.dtype, temperature: float, make: Make
) -> None:
    flow = make((3, 4, 4), levels, coupling=coupling).to(dtype)
    x = flow.sample(200, temperature=temperature)
    assert x.dtype == dtype
    assert x.min() >= 0
    assert x.max() <= 1
    assert flow.log_prob(x).isfinite().all()


# Float32 at the edges

EDGES = {
    "black": torch.zeros(2, 3, 4, 8),
    "white": torch.ones(2, 3, 4, 8),
    "grey": torch.full((2, 3, 4, 8), 0.5),
    "dark": torch.full((2, 3, 4, 8), 1 / 512),
    "board": ((torch.arange(4).view(4, 1) + torch.arange(8)) % 2).float().expand(2, 3, 4, 8),
    "stripes": (torch.arange(8) % 2).float().expand(2, 3, 4, 8),
    "smallest": torch.full((2, 3, 4, 8), 1e-45),
    "largest": torch.full((2, 3, 4, 8), 1 - 2.0**-24),
}


@every_detail
@every_coupling
@pytest.mark.parametrize("image", EDGES)
@pytest.mark.parametrize("alpha", [None, 0.0])
def test_finite_likelihood_and_gradients(
    image: str, coupling: str, detail: str, alpha: float | None, make: Make
) -> None:
    flow = make((3, 4, 8), 1, coupling=coupling, detail=detail, alpha=alpha).float()
    x = EDGES[image].clone().requires_grad_()
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert x.grad.isfinite().all()
    for name, p in flow.named_parameters():
        assert p.grad.isfinite().all(), name
    with torch.no_grad():
        z, _ = flow(x)
        back, _ = flow.inverse(z)
    # Pixels within 2**-24 of 0 and 1 move by up to 2**-24, float32 rounds, and the flow amplifies both.
    torch.testing.assert_close(back, x.detach(), rtol=0, atol=1e-4)


@every_detail
@every_coupling
def test_float32_agrees_with_float64(coupling: str, detail: str, make: Make) -> None:
    flow, x = make((3, 8, 8), 2, coupling=coupling, detail=detail), pixels(4, 3, 8, 8).float()
    want = flow.log_prob(x.double())
    # 192 dims through float32 networks of random weights.
    torch.testing.assert_close(flow.float().log_prob(x).double(), want, rtol=1e-4, atol=1e-2)


# State


@every_detail
@pytest.mark.parametrize("norm", ["act", "batch", "none"])
@every_coupling
def test_copies_pickles_and_states(coupling: str, norm: str, detail: str, make: Make) -> None:
    flow, x = make((1, 4, 4), 1, coupling=coupling, norm=norm, detail=detail).train(), pixels(4, 1, 4, 4)
    flow.log_prob(x)
    flow.eval()
    assert all(isinstance(value, Tensor) for value in flow.state_dict().values())
    assert set(flow.state_dict()) == {n for n, _ in (*flow.named_parameters(), *flow.named_buffers())}
    fresh = ProgressiveFlow((1, 4, 4), 1, coupling=coupling, norm=norm, detail=detail, **SMALL).double().eval()
    fresh.load_state_dict(flow.state_dict())
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), fresh):
        assert torch.equal(other.log_prob(x), flow.log_prob(x))
        assert other.ops == OPS


@every_coupling
@pytest.mark.parametrize("norm", ["act", "batch", "none"])
def test_log_prob_of_an_example_does_not_depend_on_its_batch(coupling: str, norm: str, make: Make) -> None:
    flow, x = make((1, 4, 4), 1, coupling=coupling, norm=norm), pixels(4, 1, 4, 4)
    close(flow.log_prob(x), torch.cat([flow.log_prob(one) for one in x.split(1)]))
    assert flow.log_prob(x[:0]).shape == (0,)
    assert flow.stage_log_probs(x[:0]).shape == (0, 3)


def test_low_precision_stays_inside_the_networks(make: Make) -> None:
    flow, x = make((1, 8, 8), 1).float(), pixels(4, 1, 8, 8).float()
    want = flow.log_prob(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outer = flow.log_prob(x)
    inner = flow.set_network_dtype(torch.bfloat16).log_prob(x)
    for got in (outer, inner):
        assert got.dtype == torch.float32
        assert not torch.equal(got, want)
        # Eight bits in the networks, of a log-density over 64 dims.
        torch.testing.assert_close(got, want, rtol=0.05, atol=1)
    assert torch.equal(flow.set_network_dtype(None).log_prob(x), want)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(0, 2),
    st.sampled_from(["x", "y", "xy", "yx"]),
    st.sampled_from(["conv", "dense"]),
    st.sampled_from(["bounded", "identity"]),
    st.integers(0, 2),
)
def test_any_shape_comes_back(size: list[int], levels: int, axes: str, coupling: str, detail: str, batch: int) -> None:
    if len(size) < 3 or "x" in axes:
        size[-1] *= 2**levels
    if len(size) == 3 and "y" in axes:
        size[-2] *= 2**levels
    flow = ProgressiveFlow(size, levels, axes=axes, coupling=coupling, detail=detail, **SMALL).double().eval()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = pixels(batch, *size)
    z, log_det = flow(x)
    assert z.shape == (batch, math.prod(size))
    back, log_det_back = flow.inverse(z)
    close(back, x)
    close(log_det_back, -log_det)
    for dim in flow._dims[::-1] * levels:
        x, _ = haar_split(x, dim)
    close(flow.encode(back), x)


# Errors

X = torch.rand(2, 1, 4, 4)


def small() -> ProgressiveFlow:
    return ProgressiveFlow((1, 4, 4), 1, **SMALL)


ERRORS = [
    (
        lambda: ProgressiveFlow("image", 1),
        TypeError,
        "ProgressiveFlow: shape must be a sequence of integers, got 'image'",
    ),
    (lambda: ProgressiveFlow((1, 4, 4, 4), 1), ValueError, r"ProgressiveFlow: shape must be \(C, H, W\), \(C, D\) or"),
    (lambda: ProgressiveFlow((1, 4, 4), -1), ValueError, "ProgressiveFlow: levels must be at least 0, got -1"),
    (lambda: ProgressiveFlow((1, 4, 4), 10**6), ValueError, "ProgressiveFlow: levels must be at most 62, got 1000000"),
    (lambda: ProgressiveFlow((1, 4, 4), 1.0), TypeError, "ProgressiveFlow: levels must be an integer, got 1.0"),
    (lambda: ProgressiveFlow((1, 4, 4), True), TypeError, "ProgressiveFlow: levels must be an integer, got True"),
    (
        lambda: ProgressiveFlow((1, 4, 6), 2),
        ValueError,
        r"ProgressiveFlow: shape must have a multiple of 4 along dim -1 for 2 levels, got \(1, 4, 6\)",
    ),
    (
        lambda: ProgressiveFlow((1, 6, 4), 2),
        ValueError,
        r"ProgressiveFlow: shape must have a multiple of 4 along dim -2 for 2 levels, got \(1, 6, 4\)",
    ),
    (
        lambda: ProgressiveFlow((1, 4, 4), 1, axes="xyx"),
        ValueError,
        "ProgressiveFlow: axes must be 'xy' or 'yx' or 'x' or 'y', got 'xyx'",
    ),
    (
        lambda: ProgressiveFlow((1, 4, 4), 1, detail="free"),
        ValueError,
        "ProgressiveFlow: detail must be 'bounded' or 'identity', got 'free'",
    ),
    (
        lambda: ProgressiveFlow((1, 4, 4), 1, coupling="mlp"),
        ValueError,
        "coupling must be 'conv' or 'dense', got 'mlp'",
    ),
    (
        lambda: ProgressiveFlow((1, 4, 4), 1, norm="layer"),
        ValueError,
        "norm must be 'act' or 'batch' or 'none', got 'layer'",
    ),
    (lambda: ProgressiveFlow((1, 4, 4), 1, alpha=-0.1), ValueError, r"alpha must be in \[0, 0.5\) or None, got -0.1"),
    (lambda: ProgressiveFlow((1, 4, 4), 1, hidden=0), ValueError, "hidden must be at least 1, got 0"),
    (lambda: small()(X[0]), ValueError, r"ProgressiveFlow: x must be \[B, 1, 4, 4\], got \[1, 4, 4\]"),
    (
        lambda: small().log_prob(X.mul(255).byte()),
        TypeError,
        "ProgressiveFlow: x must be a floating Tensor, got torch.uint8",
    ),
    (lambda: small().log_prob(X.numpy()), TypeError, "ProgressiveFlow: x must be a floating Tensor, got ndarray"),
    (
        lambda: small().stage_log_probs(255 * X.clamp(min=0.1)),
        ValueError,
        r"ProgressiveFlow: x must have values in \[0, 1\], got values from",
    ),
    (lambda: small().bits_per_dim(-X - 1), ValueError, r"ProgressiveFlow: x must have values in \[0, 1\], got values"),
    (
        lambda: small().encode(X * math.nan),
        ValueError,
        r"ProgressiveFlow: x must have values in \[0, 1\], got values from nan to nan",
    ),
    (lambda: small().inverse(X), ValueError, r"ProgressiveFlow: z must be \[B, 16\], got \[2, 1, 4, 4\]"),
    (
        lambda: small().inverse(torch.zeros(2, 16).int()),
        TypeError,
        "ProgressiveFlow: z must be a floating Tensor, got torch.int32",
    ),
    (lambda: small().stage_loss(X, 3), ValueError, "ProgressiveFlow: stage must be from 0 to 2, got 3"),
    (lambda: small().stage_loss(X, -1), ValueError, "ProgressiveFlow: stage must be at least 0, got -1"),
    (lambda: small().upsample(X, 1.0), TypeError, "ProgressiveFlow: steps must be an integer, got 1.0"),
    (lambda: small().sample(2, temperature=float("nan")), ValueError, "temperature must be at least 0 and finite"),
    (
        lambda: small().sample(2, temperature=[1, 1, -1]),
        ValueError,
        "temperature must be at least 0 and finite, got -1",
    ),
    (
        lambda: small().upsample(X[..., :2, :2], temperature=[1, 1, 1]),
        ValueError,
        "ProgressiveFlow: temperature must be a number or 2 numbers, one for each stage, got 3",
    ),
    (lambda: small().log_prob(X.double()), TypeError, "x must have the dtype of the parameters, torch.float32"),
    (lambda: small().upsample(2 * X[..., :2, :2]), ValueError, r"x must have values in \[0, 1\]"),
    (lambda: small().sample(-1), ValueError, "ProgressiveFlow: n must be at least 0, got -1"),
    (
        lambda: small().downsample(X, 3),
        ValueError,
        r"ProgressiveFlow: steps must be from 0 to 2 for \[2, 1, 4, 4\], got 3",
    ),
    (
        lambda: small().downsample(X[..., :2, :], -1),
        ValueError,
        "ProgressiveFlow: steps must be at least 0, got -1",
    ),
    (
        lambda: small().downsample(X.byte(), 1),
        TypeError,
        "ProgressiveFlow: x must be a floating Tensor, got torch.uint8",
    ),
    (
        lambda: small().upsample(X[..., :2], noise=0),
        ValueError,
        r"ProgressiveFlow: x must be \[B, 1, 2, 2\] or \[B, 1, 2, 4\] or \[B, 1, 4, 4\], got \[2, 1, 4, 2\]",
    ),
    (
        lambda: small().upsample(X[..., :2, :], 2),
        ValueError,
        r"ProgressiveFlow: steps must be from 0 to 1 for \[2, 1, 2, 4\], got 2",
    ),
    (
        lambda: small().upsample(X[..., :2, :2], -1),
        ValueError,
        "ProgressiveFlow: steps must be at least 0, got -1",
    ),
    (
        lambda: small().upsample(X[..., :2, :2], noise=1),
        ValueError,
        "ProgressiveFlow: noise must be None, 0 or a Tensor, got 1",
    ),
    (
        lambda: small().upsample(X[..., :2, :2], noise="zero"),
        ValueError,
        "ProgressiveFlow: noise must be None, 0 or a Tensor, got zero",
    ),
    (
        lambda: small().upsample(X[..., :2, :2], 1, noise=torch.zeros(2, 12)),
        ValueError,
        r"ProgressiveFlow: noise must be \[2, 4\] for 1 steps, got \[2, 12\]",
    ),
    (lambda: small().decode(X), ValueError, r"ProgressiveFlow: z must be \[B, 1, 2, 2\], got \[2, 1, 4, 4\]"),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS, ids=[text[:50] for *_, text in ERRORS])
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
