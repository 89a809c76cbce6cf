"""The compiled convolution against PyTorch's."""

import importlib
from typing import Any

import pytest
import torch
from op_tests import Case, OpTests, implementations
from tensors import normal

from pnf import ops, reference

# Batch, inputs, outputs, height, width: tiles cut at the edges, several blocks of tiles, one and two vectors of
# channels, channels that end within a vector, fewer than a kernel takes forward, and those that no kernel takes.
SHAPES = [
    (2, 16, 32, 5, 7),
    (5, 48, 16, 1, 3),
    (3, 32, 16, 12, 14),
    (5, 16, 16, 16, 18),
    (2, 21, 16, 6, 5),
    (3, 16, 41, 3, 8),
    (2, 1, 16, 5, 4),
    (2, 3, 5, 4, 6),
    (0, 16, 16, 4, 4),
]


def forward(
    batch: int, inputs: int, outputs: int, height: int, width: int, size: int = 3, add: bool = False, relu: bool = False
) -> list[Any]:
    weight = normal(outputs, inputs, size, size)
    added = normal(batch, outputs, height, width) if add else None
    return [normal(batch, inputs, height, width), weight, normal(outputs), added, relu]


def backward(
    batch: int, inputs: int, outputs: int, height: int, width: int, size: int = 3, of_input: bool = True
) -> list[object]:
    x, weight, *_ = forward(batch, inputs, outputs, height, width, size)
    return [normal(batch, outputs, height, width), x, weight, of_input]


class TestConvolution(OpTests):
    cases = {
        **{
            f"{size} {shape}": Case("convolution", lambda s=shape, k=size: forward(*s, k, s[0] % 2 == 1, s[0] != 3))
            for shape in SHAPES
            for size in (3, 1)
        },
        **{
            f"backward {size} {shape}": Case("convolution_backward", lambda s=shape, k=size: backward(*s, k))
            for shape in SHAPES
            for size in (3, 1)
        },
        "add 1": Case("convolution", lambda: forward(2, 7, 33, 5, 8, 1, add=True)),
        "5x1": Case("convolution", lambda: [normal(2, 16, 7, 4), normal(16, 16, 5, 1), normal(16), None, True]),
        "backward of the weight": Case("convolution_backward", lambda: backward(2, 16, 16, 4, 4, of_input=False)),
    }


@pytest.mark.parametrize("implementation", implementations("convolution"), ids=str)
def test_values_that_are_not_finite_stay_near(implementation: object) -> None:
    x, weight, bias = (t.float() for t in forward(1, 16, 16, 9, 9)[:3])
    want = implementation.run("convolution", [x, weight, bias, None, False])[0]
    x[0, 3, 4, 4] = torch.nan
    (got,) = implementation.run("convolution", [x, weight, bias, None, False])
    # Each tile of 2x4 results reads 4x6 pixels.
    assert got[..., 3:6, 3:6].isnan().all()
    far = torch.ones(9, 9, dtype=torch.bool)
    far[2:6, :8] = False
    assert torch.equal(got[..., far], want[..., far])


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    x, weight, bias = (t.float() for t in forward(2, 16, 16, 4, 4)[:3])
    weight.requires_grad_()
    ops.convolution(x, weight, bias).sum().backward()
    reference_weight = weight.detach().clone().requires_grad_()
    reference.convolution(x, reference_weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, reference_weight.grad)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("inputs", [3, 16])
@pytest.mark.parametrize("where", ["autocast", "arguments"])
def test_half_precision_without_instructions_is_float32_rounded_at_both_ends(
    monkeypatch: pytest.MonkeyPatch, size: int, inputs: int, where: str
) -> None:
    monkeypatch.setattr(importlib.import_module("pnf.ops.convolution"), "WIDENED", frozenset([torch.bfloat16]))
    x, weight, bias = (t.float() for t in forward(2, inputs, 16, 5, 6, size)[:3])
    halves = [t.bfloat16() for t in (x, weight, bias)]
    wide = [t.float().requires_grad_() for t in halves]
    want = ops.convolution(*wide, relu=True)
    grad = normal(*want.shape).bfloat16()
    wanted = torch.autograd.grad(want, wide, grad.float() * (want > 0))
    leaves = [t.requires_grad_() for t in ((x, weight, bias) if where == "autocast" else halves)]
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"):
        y = ops.convolution(*leaves, relu=True)
    assert torch.equal(y, want.bfloat16())
    for got, exact, leaf in zip(torch.autograd.grad(y, leaves, grad), wanted, leaves, strict=True):
        assert torch.equal(got, exact.bfloat16().to(leaf.dtype))


@pytest.mark.parametrize("function", [ops.convolution, reference.convolution])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, w, b: (x.long(), w, b), TypeError, "x must be a floating Tensor"),
        (lambda x, w, b: (x, w.double(), b), TypeError, "weight must have the dtype of x"),
        (lambda x, w, b: (x, w, b, x[:1]), ValueError, r"add must be \[2, 16, 4, 4\]"),
        (lambda x, w, b: (x[0], w, b), ValueError, r"x must be \[B, I, H, W\]"),
        (lambda x, w, b: (x, w[:, :8], b), ValueError, r"weight must be \[O, 16, h, w\]"),
        (lambda x, w, b: (x, w[..., :2], b), ValueError, "odd sizes"),
        (lambda x, w, b: (x, w, b[:4]), ValueError, r"bias must be \[16\]"),
    ],
)
def test_errors(function: object, change: object, error: type[Exception], message: str) -> None:
    arguments = change(*(t.float() for t in forward(2, 16, 16, 4, 4)[:3]))
    with pytest.raises(error, match=message):
        function(*arguments)
