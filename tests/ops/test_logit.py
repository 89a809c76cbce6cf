"""The compiled logit and its inverse against the reference."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_tests import DTYPES, Case, Implementation, OpTests, implementations
from tensors import normal
from torch import Tensor

from pnf import ops, reference
from pnf.reference.logit import BOUNDARY

OPS = ["logit", "logit_inverse"]


def pixels(*shape: int) -> Tensor:
    return 0.02 + 0.96 * torch.rand(shape, dtype=torch.float64)


def wide(*shape: int) -> Tensor:
    return 3 * normal(*shape)


def cases(name: str, make: Callable[..., Tensor], alpha: float, *shape: int) -> dict[str, Case]:
    return {
        f"{name} {shape} {alpha}": Case(name, lambda: [make(*shape), alpha]),
        f"{name}_backward {shape} {alpha}": Case(
            f"{name}_backward", lambda: [wide(*shape), wide(shape[0]), make(*shape), alpha]
        ),
    }


class TestLogit(OpTests):
    cases = {
        **cases("logit", pixels, 0.05, 3, 2, 4, 5),
        **cases("logit", pixels, 0.0, 2, 4133),
        **cases("logit", pixels, 0.4, 4),
        **cases("logit", pixels, 1e-6, 0, 3),
        **cases("logit", pixels, 0.05, 5, 0),
    }


class TestLogitInverse(OpTests):
    cases = {
        **cases("logit_inverse", normal, 0.05, 3, 2, 4, 5),
        **cases("logit_inverse", normal, 0.0, 2, 4133),
        **cases("logit_inverse", normal, 0.4, 4),
        **cases("logit_inverse", normal, 0.05, 0, 3),
        **cases("logit_inverse", normal, 0.05, 5, 0),
    }


def with_gradients(name: str, implementation: Implementation, x: Tensor, alpha: float) -> list[Tensor]:
    """Both results, and the gradients of each separately."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    sums = torch.ones(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    grads = [[one, 0 * sums], [zero, sums]]
    arguments: list[list[Any]] = [[x, alpha], *([*grad, x, alpha] for grad in grads)]
    results = []
    for op, args in zip([name, *[f"{name}_backward"] * 2], arguments, strict=True):
        moved = [a.to(implementation.device) if isinstance(a, Tensor) else a for a in args]
        results += [out.cpu() for out in implementation.run(op, moved)]
    return results


def reference_with_gradients(name: str, x: Tensor, alpha: float) -> list[Tensor]:
    x = x.detach().requires_grad_()
    results = getattr(reference, name)(x, alpha)
    return [*results, *(torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out in results)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("alpha", [0.0, BOUNDARY, 1e-6, 0.05, 0.4])
@pytest.mark.parametrize("implementation", implementations("logit"), ids=str)
def test_black_white_and_beyond(implementation: Implementation, alpha: float, dtype: torch.dtype) -> None:
    """One entry a row: at, beside and past the clamps, where only terms that are not clamped have gradients."""
    x = [0.0, 1.0, BOUNDARY, BOUNDARY / 2, 1 - BOUNDARY, -0.0, 1e-45, 0.5, -0.1, 1.1, -3e38, 3e38, 1e10, -1e10]
    rows = torch.tensor(x, dtype=dtype).unsqueeze(1)
    got, want = with_gradients("logit", implementation, rows, alpha), reference_with_gradients("logit", rows, alpha)
    # The reference's softplus drops exp(-20) past 20.
    rtol = 1e-8 if dtype is torch.float64 else 1e-6
    for a, b in zip(got, want, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.05])
@pytest.mark.parametrize("implementation", implementations("logit_inverse"), ids=str)
def test_large_noise_is_finite(implementation: Implementation, alpha: float, dtype: torch.dtype) -> None:
    y = torch.tensor([0.0, -0.0, 1e-8, -20.5, 20.5, -88, 88, -104, 104, -3e4, 3e4], dtype=dtype).unsqueeze(1)
    got = with_gradients("logit_inverse", implementation, y, alpha)
    want = reference_with_gradients("logit_inverse", y.double(), alpha)
    for a, b in zip(got, want, strict=True):
        assert a.isfinite().all()
        eps = max(torch.finfo(a.dtype).eps, 2e-9)
        torch.testing.assert_close(a.double(), b, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("implementation", implementations("logit"), ids=str)
def test_nan_and_infinities(implementation: Implementation, name: str) -> None:
    x = torch.tensor([[0.25, 0.5], [math.nan, 0.5], [0.5, math.inf], [-math.inf, 0.5]])
    args = [x.to(implementation.device), 0.05]
    for got, want in zip(implementation.run(name, args), getattr(reference, name)(x, 0.05), strict=True):
        torch.testing.assert_close(got.cpu(), want, equal_nan=True)
    grads = [a.to(implementation.device) for a in (torch.ones(4, 2), torch.ones(4), x)]
    (grad,) = implementation.run(f"{name}_backward", [*grads, 0.05])
    assert grad.isnan().tolist() == x.isnan().tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("implementation", implementations("logit"), ids=str)
def test_comes_back(implementation: Implementation, dtype: torch.dtype) -> None:
    x = torch.rand(3, 5000).to(dtype)
    y, log_det = implementation.run("logit", [x.to(implementation.device), 0.05])
    back, log_det_back = implementation.run("logit_inverse", [y, 0.05])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(back.cpu(), x, rtol=0, atol=4 * eps)
    torch.testing.assert_close(log_det_back, -log_det, rtol=4 * eps, atol=0)


@pytest.mark.parametrize(
    ("x", "alpha", "error", "text"),
    [
        (1, 0.1, TypeError, "the input must be a floating Tensor, got int"),
        (torch.zeros(2, dtype=torch.long), 0.1, TypeError, "the input must be a floating Tensor, got torch.int64"),
        (torch.zeros(()), 0.1, ValueError, "the input must be [B, ...], got []"),
        (torch.zeros(2), 0.5, ValueError, "alpha must be in [0, 0.5), got 0.5"),
        (torch.zeros(2), -0.1, ValueError, "alpha must be in [0, 0.5), got -0.1"),
        (torch.zeros(2), math.nan, ValueError, "alpha must be in [0, 0.5), got nan"),
    ],
)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(
    functions: object, name: str, x: object, alpha: float, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        getattr(functions, name)(x, alpha)
    assert str(caught.value) == f"{name}: {text}"
