"""The logit of pixels: formula, inverse, log-determinant, and its behaviour at 0 and 1."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pnf.reference import logit, logit_inverse

ALPHAS = (0.0, 1e-6, 0.05, 0.4)
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)
LogAbsDet = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


@every_alpha
def test_formula_and_inverse(alpha: float, log_abs_det: LogAbsDet) -> None:
    x = 0.001 + 0.998 * torch.rand(3, 2, 2, dtype=torch.float64)
    y, log_det = logit(x, alpha)
    p = alpha + (1 - 2 * alpha) * x
    torch.testing.assert_close(y, torch.log(p / (1 - p)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det, log_abs_det(lambda x: logit(x, alpha)[0], x), rtol=1e-9, atol=1e-9)
    back, log_det_back = logit_inverse(y, alpha)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det_back, log_abs_det(lambda y: logit_inverse(y, alpha)[0], y), rtol=1e-9, atol=1e-9)


@every_alpha
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_black_and_white_are_finite(alpha: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]], dtype=dtype, requires_grad=True)
    y, log_det = logit(x, alpha)
    back, log_det_back = logit_inverse(y, alpha)
    (y.sum() + log_det.sum() + back.sum() + log_det_back.sum()).backward()
    # The derivative of the logit at alpha is 1 / alpha, which float16 cannot hold.
    grads = () if dtype is torch.float16 and alpha == 1e-6 else (x.grad,)
    for tensor in (y, log_det, back, log_det_back, *grads):
        assert tensor.isfinite().all()
    if dtype is torch.float64:
        torch.testing.assert_close(y[0, 0], -y[0, 1], rtol=1e-9, atol=1e-9)


@every_alpha
def test_large_noise_is_finite(alpha: float) -> None:
    y = torch.tensor([[-1e4, 1e4, -200.0, 200.0]], requires_grad=True)
    x, log_det = logit_inverse(y, alpha)
    (x.sum() + log_det.sum()).backward()
    assert x.isfinite().all()
    assert log_det.isfinite().all()
    assert y.grad.isfinite().all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 0.499))
def test_comes_back_for_any_pixel(pixel: float, alpha: float) -> None:
    x = torch.tensor([[pixel]], dtype=torch.float64)
    y, log_det = logit(x, alpha)
    back, log_det_back = logit_inverse(y, alpha)
    # A pixel below 2**-24 is clamped to it. With alpha near 1/2, rounding errors are divided by a small 1 - 2 alpha.
    torch.testing.assert_close(back, x, rtol=1e-9, atol=2.0**-24 + 1e-12)
    torch.testing.assert_close(log_det, -log_det_back, rtol=1e-9, atol=1e-9)
