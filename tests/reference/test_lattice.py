"""The lattice of 8-bit images: the noise of a pair dealt out anew."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pnf.reference import haar_bounded_split, haar_split, lattice_merge, lattice_split

LogAbsDet = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def noisy(levels: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Whole pixels, and the same with noise in [0, 1]."""
    k = torch.randint(levels, shape)
    return k, (k + torch.rand(shape, dtype=torch.float64)) / levels


def details(pairs: Tensor, dim: int) -> Tensor:
    return haar_split(pairs, dim)[1]


@pytest.mark.parametrize("levels", [2, 256, 511])
@pytest.mark.parametrize("dim", [-1, -2])
def test_wholes_and_noise(levels: int, dim: int) -> None:
    k, x = noisy(levels, 5, 2, 6, 4)
    coarser, pairs = lattice_split(x, levels, dim)
    a, b = k.unflatten(dim, (-1, 2)).unbind(dim)
    assert torch.equal(((2 * levels - 1) * coarser).floor().long(), a + b)
    assert_close(haar_split(pairs, dim)[0], (a + b + 1).double() / (2 * levels))
    w = 2 * levels * details(pairs, dim) - (a - b)
    assert w.abs().max() <= 1
    assert torch.equal((levels * pairs).floor().long(), k)
    assert_close(lattice_merge(coarser, pairs, levels, dim), x, rtol=0, atol=1e-12)
    # The mean is that of the plain pair within half a level.
    assert (coarser - haar_split(x, dim)[0]).abs().max() < 0.5 / levels


def test_pixels_without_noise_have_gradients() -> None:
    """Their noise is 0, a bound of the map: at (p, q) = (0, 1/4), v = p / (1 - q + p) has the slopes 4/3 and 0."""
    x = torch.tensor([[0, 0.25]], dtype=torch.float64).div(2).requires_grad_()
    coarser, pairs = lattice_split(x, 2, -1)
    assert_close(torch.autograd.grad(coarser.sum(), x)[0], torch.tensor([[8 / 9, 0]], dtype=torch.float64))
    coarser = coarser.detach().requires_grad_()
    doubled = lattice_merge(coarser, pairs.detach(), 2, -1)
    assert torch.equal(doubled, x)
    for pixel in doubled.unbind(-1):
        assert torch.autograd.grad(pixel.sum(), coarser, retain_graph=True)[0].item() == 9 / 8


def test_the_new_noise_is_uniform_and_independent() -> None:
    """The square of the noise of a pair goes onto (0, 1) x (-1, 1), with a constant Jacobian."""
    n, levels = 64, 7
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = torch.cartesian_prod(grid, grid).view(n * n, 1, 1, 2) / levels
    halves = [lattice_split(one, levels, -1) for one in x]

    def parts(x: Tensor) -> Tensor:
        coarser, pairs = lattice_split(x, levels, -1)
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
                lattice_split(torch.stack(order(p, other)).view(1, 1, 1, 2) / 8, 8, -1)[0] for p in (below, above)
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
    coarser, pairs = lattice_split((level + noise) / levels, levels, -1)
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
        _, pairs = lattice_split(x, levels, -1)
        _, u, log_det = haar_bounded_split(pairs, gamma, -1)
        log_logistic = -math.log(2) - 2 * u.flatten().cosh().log()
        assert_close(log_logistic + log_det + math.log(2), torch.full((1000,), math.log(levels)).double())


@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 3, 4, 6), 2), ((2, 3, 4, 6), -1), ((6,), 0), ((4, 2), -2), ((2, 0), 1)]
)
def test_is_its_formula(shape: tuple[int, ...], dim: int) -> None:
    levels = 5
    x = noisy(levels, *shape)[1]
    coarser, pairs = lattice_split(x, levels, dim)
    assert pairs.shape == x.shape
    assert coarser.numel() * 2 == x.numel()
    x0, x1 = (part.transpose(0, dim) for part in (x.transpose(0, dim)[0::2], x.transpose(0, dim)[1::2]))
    (a, b), (p, q) = ((levels * x0).floor(), (levels * x1).floor()), ((levels * x0) % 1, (levels * x1) % 1)
    v, w = torch.minimum(p, q) / (1 - (p - q).abs()), (p - q) * (2 - (p - q).abs())
    assert_close(coarser, (a + b + v) / (2 * levels - 1))
    assert_close(details(pairs, dim), (a - b + w) / (2 * levels))
    assert_close(lattice_merge(coarser, pairs, levels, dim), x, rtol=0, atol=1e-12)


def test_each_pair_has_the_same_log_det(log_abs_det: LogAbsDet) -> None:
    levels, x = 3, noisy(3, 2, 4, 6)[1]

    def split(x: Tensor) -> Tensor:
        coarser, pairs = lattice_split(x, levels, -1)
        return torch.cat((coarser, details(pairs, -1)), -1)

    want = x.new_full((2,), 12 * math.log(levels / (2 * levels - 1)))
    assert_close(log_abs_det(split, x), want)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 2**12))
def test_any_two_pixels_come_back(x0: float, x1: float, levels: int) -> None:
    """Up to a level, which a rounding error at its bound costs."""
    x = torch.tensor([x0, x1], dtype=torch.float64)
    coarser, pairs = lattice_split(x, levels, -1)
    for part in (coarser, pairs, back := lattice_merge(coarser, pairs, levels, -1)):
        assert part.min() >= 0
        assert part.max() <= 1
    assert (back - x).abs().max() <= 1 / levels


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False), st.integers(1, 2**12))
def test_any_numbers_make_pixels_in_range(coarser: float, first: float, levels: int) -> None:
    x = lattice_merge(torch.tensor([coarser]), torch.tensor([first, 0.5]), levels, -1)
    assert x.min() >= 0
    assert x.max() <= 1


# Errors
