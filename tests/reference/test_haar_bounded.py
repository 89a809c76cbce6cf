"""The bounded-detail map."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pnf.reference import haar_bounded_merge, haar_bounded_split, haar_merge, haar_split

BLACK, GREY, WHITE = 0.0, 0.5, 1.0
LogAbsDet = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def neighbours(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    entries = x.unbind(dim)
    return torch.stack(entries[0::2], dim), torch.stack(entries[1::2], dim)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dim", [2, 3, -1, -2])
def test_bounded_split_is_its_formula(dim: int) -> None:
    x, gamma = 0.01 + 0.98 * rand(3, 2, 4, 6), torch.tensor([0.3, -0.7], dtype=torch.float64)
    x0, x1 = neighbours(x, dim)
    s, d = (x0 + x1) / 2, (x0 - x1) / 2
    m = torch.minimum(s, 1 - s)
    g = gamma.view(2, 1, 1)
    got_s, u, log_det = haar_bounded_split(x, gamma, dim)
    close(got_s, s)
    close(u, m**g * torch.atanh(d / m), 1e-10)
    # log |du/dd| = gamma log m - log m - log(1 - (d / m)^2), and -log 2 for each pair.
    want = g * m.log() - m.log() - torch.log1p(-((d / m) ** 2)) - math.log(2)
    close(log_det, want.flatten(1).sum(1), 1e-10)


@pytest.mark.parametrize("dim", [2, 3, -1, -2])
def test_bounded_merge_is_its_formula(dim: int) -> None:
    s, u = 0.01 + 0.98 * rand(3, 2, 2, 3), torch.randn(3, 2, 2, 3, dtype=torch.float64)
    gamma = torch.tensor([0.3, -0.7], dtype=torch.float64)
    m = torch.minimum(s, 1 - s)
    d = m * torch.tanh(u / m ** gamma.view(2, 1, 1))
    x, _ = haar_bounded_merge(s, u, gamma, dim)
    close(x, haar_merge(s, d, dim))


@pytest.mark.parametrize("shape", [(3, 2, 6), (2, 2, 4, 2), (2, 1, 1, 2)])
def test_bounded_map_inverts_and_has_its_log_det(shape: tuple[int, ...], log_abs_det: LogAbsDet) -> None:
    x = 0.001 + 0.998 * rand(*shape)
    gamma = torch.linspace(-0.5, 1.2, shape[1], dtype=torch.float64)
    s, u, log_det = haar_bounded_split(x, gamma, -1)
    close(log_abs_det(lambda x: torch.cat(haar_bounded_split(x, gamma, -1)[:2], -1), x), log_det, 1e-9)
    back, log_det_back = haar_bounded_merge(s, u, gamma, -1)
    close(back, x, 1e-10)
    close(log_det_back, -log_det, 1e-9)
    close(
        log_abs_det(lambda su: haar_bounded_merge(*su.chunk(2, -1), gamma, -1)[0], torch.cat((s, u), -1)),
        log_det_back,
        1e-9,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pair", [(p, q) for p in (BLACK, GREY, WHITE) for q in (BLACK, GREY, WHITE)])
def test_bounded_map_at_the_edges(pair: tuple[float, float], gamma: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[[*pair]]], dtype=dtype, requires_grad=True)
    g = torch.tensor([gamma], dtype=dtype, requires_grad=True)
    s, u, log_det = haar_bounded_split(x, g, -1)
    back, log_det_back = haar_bounded_merge(s, u, g, -1)
    (s.sum() + u.sum() + log_det.sum() + back.sum() + log_det_back.sum()).backward()
    for tensor in (s, u, log_det, back, log_det_back, x.grad, g.grad):
        assert tensor.isfinite().all()
    assert back.min() >= 0
    assert back.max() <= 1
    # Pixels are clamped to at least 2**-24 inside, and u and s are rounded to the dtype.
    torch.testing.assert_close(back, x, rtol=0, atol=max(2.0**-22, 32 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("gamma", [-1e3, -6.0, -4.0, 4.0, 6.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_any_gamma_has_finite_results_and_gradients(gamma: float, dtype: torch.dtype) -> None:
    pixels = torch.tensor([BLACK, 2.0**-24, 2.0**-23, 1e-5, 0.1, GREY, 1 - 2.0**-8, WHITE], dtype=dtype)
    x = torch.cartesian_prod(pixels, pixels)[None, None].requires_grad_()
    g = torch.tensor([gamma], dtype=dtype, requires_grad=True)
    s, u, log_det = haar_bounded_split(x, g, -1)
    detail = (torch.linspace(-100, 100, s.numel(), dtype=dtype).view(s.shape)).requires_grad_()
    back, log_det_back = haar_bounded_merge(s.detach().requires_grad_(), detail, g, -1)
    out = (s, u, log_det, back, log_det_back)
    tensors = (*out, *torch.autograd.grad([tensor.sum() for tensor in out], (x, detail, g)))
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_bounded_merge_is_exact_at_large_details() -> None:
    s, gamma = torch.full((1, 1, 1), 0.25, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    _, log_det = haar_bounded_merge(s, torch.full_like(s, 12.0), gamma, -1)
    close(
        log_det,
        math.log(0.25) + 3 * math.log(2) - 24 - 2 * torch.full((1,), -24.0, dtype=torch.float64).exp().log1p(),
        1e-14,
    )


@pytest.mark.parametrize("value", [BLACK, 0.25, GREY, 0.75, WHITE])
def test_equal_pixels_have_no_detail(value: float) -> None:
    s, u, _ = haar_bounded_split(torch.full((1, 1, 2), value), torch.zeros(1), -1)
    assert s.item() == value
    assert u.item() == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 2))
def test_bounded_map_comes_back_for_any_two_pixels(x0: float, x1: float, gamma: float) -> None:
    x, g = torch.tensor([[[x0, x1]]], dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64)
    s, u, log_det = haar_bounded_split(x, g, -1)
    back, log_det_back = haar_bounded_merge(s, u, g, -1)
    assert torch.isfinite(log_det + log_det_back + u.sum())
    assert back.min() >= 0
    assert back.max() <= 1
    # The clamp moves each pixel by up to 2**-24 if one of the pair is nearer than that to 0 or 1.
    torch.testing.assert_close(back, x, rtol=1e-9, atol=2.0**-23)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0, 1, width=32), st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-1, 2, width=32))
def test_any_detail_makes_pixels_in_range_with_mean_s(mean: float, detail: float, gamma: float) -> None:
    s, u, g = torch.tensor([[[mean]]]), torch.tensor([[[detail]]]), torch.tensor([gamma])
    x, _ = haar_bounded_merge(s, u, g, -1)
    assert x.min() >= 0
    assert x.max() <= 1
    torch.testing.assert_close(haar_split(x, -1)[0], s, rtol=2.0**-23, atol=2.0**-24)


# Errors
