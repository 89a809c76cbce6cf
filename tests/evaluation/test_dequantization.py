"""Noise that is fitted to a flow and its images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pnf.data import Images, load
from pnf.data.transforms import placed
from pnf.evaluation import evaluate, load_run
from pnf.evaluation.dequantization import fit_slopes, fitted_noise
from pnf.evaluation.likelihood import variational_log_probs

SLOPES = [-8.0, -1.0, -2e-3, -1e-4, 0.0, 1e-4, 2e-3, 1.0, 8.0]


@pytest.fixture(scope="module")
def held_out() -> Images:
    return load("fashion-mini", "test", 8, limit=70)


@pytest.mark.parametrize("slope", SLOPES)
def test_noise_has_the_density_that_is_told(slope: float) -> None:
    n = 100_000
    uniform = (torch.arange(n, dtype=torch.float64).view(-1, 1) + 0.5) / n
    noise, log_q = fitted_noise(torch.full((n, 1), slope, dtype=torch.float64), uniform)
    assert noise.min() >= 0
    assert noise.max() <= 1
    # The distribution function's derivative at the noise.
    density = 2 / n / (noise[2:, 0] - noise[:-2, 0])
    torch.testing.assert_close(density, log_q[1:-1].exp(), rtol=1e-3, atol=0)


def test_noise_stays_in_its_cell() -> None:
    pixels = torch.tensor([[0, 1, 254, 255]], dtype=torch.uint8)
    for noise in (0.0, 1.0, 1 - 2**-53):
        x = placed(pixels, torch.full(pixels.shape, noise, dtype=torch.float64))
        assert torch.equal((256 * x).floor(), pixels.float())
        assert x.max() < 1


def test_the_fit_of_a_log_density_that_is_linear_in_a_cell_is_exact() -> None:
    slopes = torch.linspace(-6, 6, 8, dtype=torch.float64)

    def log_prob(x: Tensor) -> Tensor:
        return 256 * (x.double() @ slopes)

    pixels = torch.randint(256, (5, 8), dtype=torch.uint8)
    fitted = fit_slopes(log_prob, pixels)
    torch.testing.assert_close(fitted, slopes.expand(5, 8), rtol=1e-4, atol=1e-4)
    noise, log_q = fitted_noise(fitted, torch.rand(5, 8, dtype=torch.float64))
    # Every draw gives the probability of the cell: the integral of the density over it.
    exact = pixels.double() @ slopes + (slopes.expm1() / slopes).log().sum()
    torch.testing.assert_close(log_prob(placed(pixels, noise)) - log_q, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_slopes_are_finite(value: float) -> None:
    fitted = fit_slopes(lambda x: (x * value).sum(1), torch.zeros(2, 3, dtype=torch.uint8))
    assert fitted.isfinite().all()


@pytest.mark.parametrize("model", ["progressive", "realnvp"])
def test_the_bound_is_tighter_than_that_of_uniform_noise(
    finished: Callable[..., Path], held_out: Images, model: str
) -> None:
    _, flow = load_run(finished(model=model))
    plain, result = evaluate(flow, held_out, draws=2), evaluate(flow, held_out, draws=2, variational=True)
    assert result.variational_bits_per_dim is not None
    assert result.variational_bits_per_dim < result.draws_bits_per_dim == plain.draws_bits_per_dim
    assert result.variational_bits_per_dim_error == pytest.approx(result.draws_bits_per_dim_error, rel=0.2)
    assert plain.variational_bits_per_dim is None
    by_draw = variational_log_probs(flow, held_out, draws=2)
    assert by_draw.shape == (70, 2)
    assert not torch.equal(by_draw[:, 0], by_draw[:, 1])
    assert torch.equal(by_draw, variational_log_probs(flow, held_out, draws=2))
    assert torch.equal(by_draw[:, :1], variational_log_probs(flow, held_out))
