"""The compiled space-to-depth against the reference, bit for bit."""

import itertools
from typing import Any

import pytest
import torch
from op_tests import LAYOUTS, Case, Implementation, OpTests, implementations
from torch import Tensor

from pnf import ops, reference
from pnf.ops._library import KERNELS

OPS = ["squeeze", "squeeze_inverse"]
ORDERS = ["plain", "factor"]
# Shapes of the squeezed tensor, but with C channels.
SHAPES = [(2, 3, 2, 5), (1, 1, 1, 1), (2, 12, 3, 8), (1, 2, 33, 70), (2, 5, 1, 17), (1, 70, 1, 2)]
EMPTY = [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)]
BITS = [
    torch.float64, torch.float32, torch.bfloat16, torch.complex128, torch.complex64, torch.bool, torch.uint8,
    torch.int16, torch.int64, torch.float8_e4m3fn,
]  # fmt: skip


def size(op: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    b, c, h, w = shape
    return (b, c, 2 * h, 2 * w) if op == "squeeze" else (b, 4 * c, h, w)


class TestSqueeze(OpTests):
    cases = {
        f"{op} {order} {shape}": Case(
            op, lambda op=op, order=order, shape=shape: [torch.randn(size(op, shape), dtype=torch.float64), order]
        )
        for op, order, shape in itertools.product(OPS, ORDERS, [(2, 3, 2, 5), (1, 1, 1, 1), (2, 0, 2, 2)])
    }


def make(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of random bits, including NaNs with payloads."""
    entry = torch.empty((), dtype=dtype).element_size()
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (*shape, entry), dtype=torch.uint8)
    return bits.view(dtype).squeeze(-1) if bits.numel() else torch.empty(shape, dtype=dtype)


def bits_of(x: Tensor) -> Tensor:
    return x.cpu().contiguous().flatten().view(torch.uint8)


def assert_moves(implementation: Implementation, op: str, x: Tensor, order: str) -> None:
    indices = torch.arange(x.numel()).view(x.shape)
    want = x.flatten().view(torch.uint8).view(x.numel(), x.element_size())[getattr(reference, op)(indices, order)]
    for name, layout in LAYOUTS.items():
        (got,) = implementation.run(op, [layout(x.to(implementation.device)), order])
        assert got.dtype == x.dtype
        assert got.shape == want.shape[:-1]
        assert torch.equal(bits_of(got), want.flatten()), name


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("op", "implementation"), [(op, i) for op in OPS for i in implementations(op)], ids=lambda value: str(value)
)
def test_moves_every_entry(op: str, implementation: Implementation, order: str, shape: tuple[int, ...]) -> None:
    assert_moves(implementation, op, make(size(op, shape), torch.float32), order)


@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("op", "implementation"),
    # Without the reference, which cannot concatenate every dtype.
    [(op, i) for op in OPS for i in implementations(op) if i.kind != "reference"],
    ids=lambda value: str(value),
)
def test_moves_the_bits_of_any_dtype(op: str, implementation: Implementation, order: str, dtype: torch.dtype) -> None:
    for shape in [(1, 19, 3, 5), (2, 2, 2, 16)]:
        assert_moves(implementation, op, make(size(op, shape), dtype), order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("op", OPS)
def test_results_are_no_views(op: str, order: str) -> None:
    """With 2x2 pixels, which become one, a view would have the same memory."""
    for fallback in (KERNELS[op]["reference"], getattr(torch.ops.pnf, op).default):
        x = torch.zeros(size(op, (2, 1, 1, 1)))
        fallback(x, order).add_(1)
        assert not x.any()


@pytest.mark.parametrize("op", OPS)
def test_default_order(op: str) -> None:
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(getattr(ops, op)(x), getattr(reference, op)(x, "plain"))


X = torch.zeros(2, 4, 4, 4)


@pytest.mark.parametrize(
    ("op", "args", "error", "text"),
    [
        ("squeeze", (1,), TypeError, "squeeze: the input must be a Tensor, got int"),
        ("squeeze", (X, "rows"), ValueError, 'squeeze: order must be "plain" or "factor", got \'rows\''),
        ("squeeze", (X[0],), ValueError, "squeeze: the input must be [B, C, H, W], got [4, 4, 4]"),
        ("squeeze", (X[..., 1:],), ValueError, "squeeze: x must have an even height and width, got [2, 4, 4, 3]"),
        ("squeeze", (X[..., 1:, :],), ValueError, "squeeze: x must have an even height and width, got [2, 4, 3, 4]"),
        ("squeeze_inverse", (None,), TypeError, "squeeze_inverse: the input must be a Tensor, got NoneType"),
        ("squeeze_inverse", (X, ""), ValueError, 'squeeze_inverse: order must be "plain" or "factor", got \'\''),
        ("squeeze_inverse", (X[0],), ValueError, "squeeze_inverse: the input must be [B, C, H, W], got [4, 4, 4]"),
        ("squeeze_inverse", (X[:, 1:],), ValueError,
         "squeeze_inverse: y must have a multiple of 4 channels, got [2, 3, 4, 4]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(
    functions: object, op: str, args: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        getattr(functions, op)(*args)
    assert str(caught.value) == text
