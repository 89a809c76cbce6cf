"""The functions of :mod:`pnf.kernels._common` in units in the last place, where a GPU's own err as they may."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from approximate import approximate
from torch import Tensor

import pnf.ops  # noqa: F401 - registers every family
from pnf.kernels import _common

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 1024


@triton.jit
def _apply(y, x, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o)
    if FUNCTION == "exp":
        b_y = _common.exp(b_x)
    elif FUNCTION == "log":
        b_y = _common.log(b_x)
    elif FUNCTION == "sqrt":
        b_y = _common.sqrt(b_x)
    elif FUNCTION == "reciprocal":
        b_y = _common.divide(1.0, b_x)
    elif FUNCTION == "tanh":
        b_y = _common.tanh(b_x)[0]
    elif FUNCTION == "slope":
        b_y = _common.tanh(b_x)[1]
    else:
        b_y = tl.exp(b_x)
    tl.store(y + o, b_y)


def apply(function: str, x: Tensor) -> Tensor:
    x = x.to(DEVICE)
    y = torch.empty_like(x)
    with np.errstate(all="ignore"):
        _apply[(x.numel() // BLOCK,)](y, x, function, BLOCK)
    return y.cpu()


def units(got: Tensor, exact: Tensor) -> float:
    """The largest error in units in the last place of what is exact, among normal numbers."""
    normal = exact.abs() >= torch.finfo(got.dtype).tiny
    size = torch.exp2(exact[normal].abs().log2().floor()) * torch.finfo(got.dtype).eps
    return float(((got.double()[normal] - exact[normal]).abs() / size).max())


POSITIVE = torch.cat([torch.logspace(-37, 38, 4 * BLOCK), torch.linspace(0.5, 2, 4 * BLOCK)])
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, float]] = {
    "exp": (torch.exp, torch.linspace(-87, 88.7, 16 * BLOCK), 1.1),
    "log": (torch.log, POSITIVE, 1.0),
    "sqrt": (torch.sqrt, POSITIVE, 0.5),
    "reciprocal": (torch.reciprocal, POSITIVE, 0.5),
    "tanh": (torch.tanh, torch.linspace(-12, 12, 16 * BLOCK), 2.0),
    "slope": (lambda x: x.cosh().square().reciprocal(), torch.linspace(-30, 30, 16 * BLOCK), 5.0),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_errs_by_few_units_whatever_a_gpu_does(function: str) -> None:
    exact, x, most = FUNCTIONS[function]
    with approximate(2):
        assert units(apply(function, x), exact(x.double())) <= most


def test_the_interpreter_errs_as_a_gpu_does() -> None:
    exact, x, most = FUNCTIONS["exp"]
    with approximate(2):
        assert units(apply("as Triton has it", x), exact(x.double())) > 20 * most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_and_nan(dtype: torch.dtype) -> None:
    inf, nan, huge = float("inf"), float("nan"), torch.finfo(dtype).max
    x = torch.tensor([inf, -inf, nan, huge, -huge, 0.0, -0.0, 1e-30], dtype=dtype).repeat(BLOCK // 8)
    for function, exact in {"exp": torch.exp, "tanh": torch.tanh}.items():
        torch.testing.assert_close(apply(function, x), exact(x), equal_nan=True, rtol=0, atol=0)
    x = torch.tensor([inf, nan, 1.0, 2.0], dtype=dtype).repeat(BLOCK // 4)
    torch.testing.assert_close(apply("log", x), x.log(), equal_nan=True, rtol=1e-6, atol=0)
