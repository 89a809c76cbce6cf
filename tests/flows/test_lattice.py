"""Flows on the lattice of 8-bit images: the noise of a pair dealt out anew, and what that makes of flat pairs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from pnf import fast, reference
from pnf.data import dequantize, load
from pnf.flows import lattice

SMALL: dict[str, Any] = {"hidden": 4, "blocks": 1, "num_couplings": 2, "lattice": True}

every_shape = pytest.mark.parametrize(
    ("shape", "levels", "axes"),
    [
        ((8,), 2, "xy"),
        ((2, 6), 1, "xy"),
        ((1, 4, 4), 1, "yx"),
        ((3, 4, 8), 2, "x"),
        ((1, 8, 8), 2, "xy"),
        ((3, 3, 5), 0, "xy"),
    ],
)
every_coupling = pytest.mark.parametrize("coupling", ["conv", "dense"])

Make = Callable[..., reference.ProgressiveFlow]


@pytest.fixture
def make(randomise: Callable[..., nn.Module]) -> Make:
    return lambda shape, levels, **kw: randomise(
        reference.ProgressiveFlow(shape, levels, **SMALL | kw).double(), 0.1
    ).eval()


def noisy(levels: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Whole pixels, and the same with noise in [0, 1]."""
    k = torch.randint(levels, shape)
    return k, (k + torch.rand(shape, dtype=torch.float64)) / levels


def details(pairs: Tensor, dim: int) -> Tensor:
    return reference.haar_split(pairs, dim)[1]


# One pair


@pytest.mark.parametrize("levels", [2, 256, 511])
@pytest.mark.parametrize("dim", [-1, -2])
def test_wholes_and_noise(levels: int, dim: int) -> None:
    k, x = noisy(levels, 5, 2, 6, 4)
    coarser, pairs = lattice.halve(x, levels, dim)
    a, b = k.unflatten(dim, (-1, 2)).unbind(dim)
    assert torch.equal(((2 * levels - 1) * coarser).floor().long(), a + b)
    assert_close(reference.haar_split(pairs, dim)[0], (a + b + 1).double() / (2 * levels))
    assert_close(lattice.whole_mean(coarser, levels), (a + b + 1).double() / (2 * levels))
    w = 2 * levels * details(pairs, dim) - (a - b)
    assert w.abs().max() <= 1
    assert torch.equal((levels * pairs).floor().long(), k)
    assert_close(lattice.double(coarser, pairs, levels, dim), x, rtol=0, atol=1e-12)
    # The mean is that of the plain pair within half a level.
    assert (coarser - reference.haar_split(x, dim)[0]).abs().max() < 0.5 / levels


def test_pixels_without_noise_have_gradients() -> None:
    """Their noise is 0, a bound of the map: at (p, q) = (0, 1/4), v = p / (1 - q + p) has the slopes 4/3 and 0."""
    x = torch.tensor([[0, 0.25]], dtype=torch.float64).div(2).requires_grad_()
    coarser, pairs = lattice.halve(x, 2, -1)
    assert_close(torch.autograd.grad(coarser.sum(), x)[0], torch.tensor([[8 / 9, 0]], dtype=torch.float64))
    coarser = coarser.detach().requires_grad_()
    doubled = lattice.double(coarser, pairs.detach(), 2, -1)
    assert torch.equal(doubled, x)
    for pixel in doubled.unbind(-1):
        assert torch.autograd.grad(pixel.sum(), coarser, retain_graph=True)[0].item() == 9 / 8


def test_the_new_noise_is_uniform_and_independent() -> None:
    """The square of the noise of a pair goes onto (0, 1) x (-1, 1), with a constant Jacobian."""
    n, levels = 64, 7
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = torch.cartesian_prod(grid, grid).view(n * n, 1, 1, 2) / levels
    halves = [lattice.halve(one, levels, -1) for one in x]

    def parts(x: Tensor) -> Tensor:
        coarser, pairs = lattice.halve(x, levels, -1)
        return torch.cat((coarser.flatten(), details(pairs, -1).flatten()))

    for one in x[:: n + 7]:
        jacobian = torch.autograd.functional.jacobian(parts, one).view(2, 2)
        assert jacobian.det().abs().item() == pytest.approx(levels**2 * 2 / ((2 * levels - 1) * 2 * levels))
    v = torch.stack([(2 * levels - 1) * coarser for coarser, _ in halves]).flatten()
    w = torch.stack([2 * levels * details(pairs, -1) for _, pairs in halves]).flatten()
    counts = torch.histogramdd(torch.stack((v, w), 1), [4, 4], range=[0.0, 1.0, -1.0, 1.0])[0]
    assert counts.sum() == n * n
    assert (counts / counts.mean() - 1).abs().max() < 0.1


def test_the_mean_is_continuous() -> None:
    """A pixel that passes from one level to the next takes the coarser image along."""
    below, above = torch.tensor(3 - 1e-9).double(), torch.tensor(3 + 1e-9).double()
    for other in torch.linspace(0.1, 7.9, 20, dtype=torch.float64):
        for order in (lambda p, q: (p, q), lambda p, q: (q, p)):
            low, high = (
                lattice.halve(torch.stack(order(p, other)).view(1, 1, 1, 2) / 8, 8, -1)[0] for p in (below, above)
            )
            assert_close(low, high, rtol=0, atol=1e-7)


@pytest.mark.parametrize("level", [0, 1, 100, 255])
def test_a_flat_pair_costs_nothing(level: int) -> None:
    """Given the levels, the detail is uniform over a width of 1/L, whatever the mean: ``log p = log L`` at every noise.

    Of plain details the same is not so: their width depends on the noise of the mean, which costs ``1 - log 2`` nats on
    average unless it is seen.
    """
    levels = 256
    noise = torch.rand(20_000, 1, 1, 2, dtype=torch.float64)
    coarser, pairs = lattice.halve((level + noise) / levels, levels, -1)
    d = 2 * levels * details(pairs, -1).flatten()
    v = ((2 * levels - 1) * coarser - 2 * level).flatten()
    assert d.abs().max() <= 1
    for part in (v < 0.1, v > 0.9):
        # In every part of the mean's noise: uniform over all of (-1, 1).
        quantiles = d[part].quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        assert_close(quantiles, torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64), rtol=0, atol=0.06)
    plain = details(noise, -1).flatten() * 2
    assert plain[noise.flatten(1).mean(1) < 0.1].abs().max() <= 0.2


def test_black_and_white_pairs_are_logistic_at_any_noise() -> None:
    """With gamma = 0 the detail of a black or white pair is a logistic variable, so a coupling has nothing to find."""
    levels, gamma = 256, torch.zeros(1, dtype=torch.float64)
    for level in (0, 255):
        x = (level + torch.rand(1000, 1, 1, 2, dtype=torch.float64)) / levels
        _, pairs = lattice.halve(x, levels, -1)
        _, u, log_det = reference.haar_bounded_split(pairs, gamma, -1)
        log_logistic = -math.log(2) - 2 * u.flatten().cosh().log()
        assert_close(log_logistic + log_det + math.log(2), torch.full((1000,), math.log(levels)).double())


# Flows


@every_coupling
@every_shape
def test_is_a_bijection_with_its_log_det(
    shape: tuple[int, ...], levels: int, axes: str, coupling: str, make: Make, log_abs_det: Callable[..., Tensor]
) -> None:
    flow = make(shape, levels, axes=axes, coupling=coupling)
    x = torch.rand(2, *shape, dtype=torch.float64)
    z, log_det = flow(x)
    assert_close(log_det, log_abs_det(lambda x: flow(x)[0], x))
    back, log_det_back = flow.inverse(z)
    assert_close(back, x, rtol=0, atol=1e-8)
    assert_close(log_det_back, -log_det)
    shares = flow.stage_log_probs(x)
    assert_close(shares.sum(1), flow.log_prob(x))
    for k, size in enumerate(flow.stage_dims):
        assert_close(flow.stage_loss(x, k), -shares[:, k].mean() / size)


@every_coupling
@every_shape
def test_down_and_up(shape: tuple[int, ...], levels: int, axes: str, coupling: str, make: Make) -> None:
    flow = make(shape, levels, axes=axes, coupling=coupling)
    x, last = torch.rand(2, *shape, dtype=torch.float64), len(flow.stages) - 1
    for k in range(last + 1):
        image = flow.downsample(x, last - k)
        assert tuple(image.shape[1:]) == flow.stage_shapes[k]
        for noise in (None, 0):
            grown = flow.upsample(image, noise=noise)
            assert 0 <= grown.min() <= grown.max() <= 1
            assert_close(flow.downsample(grown, last - k), image, rtol=0, atol=1e-6)
    once = flow.project(x)
    assert_close(flow.project(once), once, rtol=0, atol=1e-6)


@every_coupling
def test_derivatives_and_transforms(coupling: str, make: Make) -> None:
    flow = make((1, 4, 4), 1, coupling=coupling)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64).requires_grad_()
    assert gradcheck(flow.log_prob, x, eps=1e-8, atol=1e-3)
    (want,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    got = torch.vmap(torch.func.grad(lambda x: flow.log_prob(x.unsqueeze(0))[0]))(x.detach())
    assert_close(got, want)


@every_coupling
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_black_white_and_checkered_images_are_finite(coupling: str, dtype: torch.dtype, make: Make) -> None:
    flow = make((1, 8, 8), 2, coupling=coupling).to(dtype)
    x = torch.zeros(4, 1, 8, 8, dtype=dtype)
    x[1], x[2, ..., ::2], x[3, :, ::2] = 1, 1, 1
    x.requires_grad_()
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    for temperature in (0.0, 1.0, 50.0):
        samples = flow.sample(3, temperature=temperature)
        assert 0 <= samples.min() <= samples.max() <= 1
        assert flow.log_prob(samples).isfinite().all()


@every_coupling
def test_equals_the_reference(coupling: str, randomise: Callable[..., nn.Module]) -> None:
    images = dequantize(load("fashion-mini", "train", 16, limit=8).pixels)
    flow = reference.ProgressiveFlow((1, 16, 16), 2, coupling=coupling, **SMALL)
    flow.train()(images)
    randomise(flow, 0.1)
    twin = fast.ProgressiveFlow((1, 16, 16), 2, coupling=coupling, **SMALL)
    twin.load_state_dict(flow.state_dict())
    for model in (flow, twin):
        model.eval()
    want = flow.log_prob(images)
    assert_close(twin.log_prob(images), want, rtol=1e-5, atol=0)
    assert torch.equal(twin.encode(images), flow.encode(images))


def test_an_image_survives_at_8_bits(make: Make) -> None:
    pixels = load("fashion-mini", "train", 16, limit=64).pixels
    x = dequantize(pixels, torch.Generator().manual_seed(0))
    flow = make((1, 16, 16), 2, coupling="dense").float()
    assert (flow.inverse(flow(x)[0])[0] - x).abs().max() < 1 / 512


def test_is_saved_with_the_flow(tmp_path: Any, make: Make) -> None:
    flow = make((1, 4, 4), 1, coupling="dense").float()
    flow.save_pretrained(tmp_path)
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(reference.ProgressiveFlow.from_pretrained(tmp_path).log_prob(x), flow.log_prob(x))


def test_the_base_starts_at_the_width_of_a_level() -> None:
    assert reference.ProgressiveFlow((1, 8, 8), 2, coupling="dense", **SMALL).alpha == 1 / (255 * 16 + 1)


@pytest.mark.parametrize("settings", [{"detail": "identity"}, {"support": "real"}], ids=str)
def test_only_images_have_levels(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='lattice must be False with detail="identity"'):
        reference.ProgressiveFlow((1, 4, 4), 1, **SMALL | settings)


def test_levels_leave_bits_for_noise() -> None:
    with pytest.raises(ValueError, match="on the lattice there are at most 12 steps, got 13"):
        reference.ProgressiveFlow((2**13,), 13, coupling="dense", **SMALL)
