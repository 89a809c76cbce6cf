"""The compiled input stage of a conditioner network against the reference."""

import itertools
import math
from typing import Any

import pytest
import torch
from op_tests import LAYOUTS, Case, Implementation, OpTests, implementations, use_threads
from tensors import normal
from torch import Tensor

from pnf import ops, reference

MASKS = [(mask, parity) for mask in ("checkerboard", "channel") for parity in (0, 1)]
EPS = 1e-3


def forward(
    mask: str, parity: int, shape: tuple[int, ...], norm: str = "batch", condition: int | None = 2
) -> list[Any]:
    kept = shape[1] // 2 if mask == "channel" else shape[1]
    beside = None if condition is None else normal(shape[0], condition, *shape[2:])
    offset = None if norm == "none" else normal(kept)
    statistics = (normal(kept), normal(kept).square()) if norm == "given" else (None, None)
    return [normal(*shape) + 1, beside, offset, *statistics, mask, parity, 2.0, EPS]


def backward(mask: str, parity: int, shape: tuple[int, ...], norm: str = "batch") -> list[Any]:
    x, condition, offset, *given, mask, parity, gain, eps = forward(mask, parity, shape, norm)
    h, mean, var = torch.ops.pnf.conditioner_input(x, condition, offset, *given, mask, parity, gain, eps)
    return [normal(*h.shape), x, offset, mean, var, mask, parity, gain, eps, norm == "batch"]


BOARD = ("checkerboard", 0, (2, 3, 3, 4))
CASES: list[tuple[Any, ...]] = [
    BOARD,
    (*BOARD, "none", None),
    (*BOARD, "given"),
    ("checkerboard", 1, (2, 2, 5, 3)),
    ("checkerboard", 1, (2, 2, 7), "batch", None),
    ("channel", 0, (2, 6, 3, 4)),
    ("channel", 1, (4, 2), "batch", 3),
    ("checkerboard", 0, (0, 2, 3, 4), "given"),
    ("checkerboard", 0, (3, 2, 4, 1)),
]


class TestConditionerInput(OpTests):
    # The forward's second derivatives differentiate the backward, as for batch_norm_relu.
    cases = {
        **{
            f"forward {case}": Case("conditioner_input", lambda c=case: forward(*c), differentiable="given" not in case)
            for case in CASES
        },
        **{
            f"backward {case}": Case("conditioner_input_backward", lambda c=case: backward(*c), differentiable=False)
            for case in (BOARD, (*BOARD, "none"), (*BOARD, "given"), CASES[5], CASES[7], CASES[8])
        },
    }


every_implementation = pytest.mark.parametrize("implementation", implementations("conditioner_input"), ids=str)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("norm", ["batch", "given", "none"])
@pytest.mark.parametrize("shape", [(3, 4, 61, 34), (2, 66, 4, 5), (70, 6, 8, 8), (1, 2, 1, 9000), (2, 4, 130, 3)])
def test_large_tensors_on_any_number_of_threads(shape: tuple[int, ...], norm: str, layout: str) -> None:
    for mask, parity in MASKS:
        x, condition, offset, *others = forward(mask, parity, shape, norm)
        args = [None if a is None else LAYOUTS[layout](a.float()).requires_grad_() for a in (x, condition, offset)]
        others = [a.float() if isinstance(a, Tensor) else a for a in others]
        inputs = [a for a in args if a is not None]
        results = []
        for threads in (1, 2, 3):
            with use_threads(threads):
                h, *statistics = torch.ops.pnf.conditioner_input(*args, *others)
                grad = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
                results.append([h, *statistics, *torch.autograd.grad(h, inputs, grad)])
        for found in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], found, strict=True))
        exact = [None if a is None else a.detach().double().requires_grad_() for a in args]
        mean, var, mask_, parity_, gain, eps = others
        h, *statistics = reference.conditioner_input(*exact, mean, var, mask=mask_, parity=parity_, gain=gain, eps=eps)
        grads = torch.autograd.grad(h, [a for a in exact if a is not None], grad.double())
        want = [h, *(results[0][i + 1] if a is None else a for i, a in enumerate(statistics)), *grads]
        for a, b in zip(results[0], want, strict=True):
            scale = b.abs().max().item() if b.numel() else 0
            # A sum of so many terms of either sign, of about 1 each, may be near 0 and err by this much all the same.
            rounding = torch.finfo(torch.float32).eps * math.sqrt(grad.numel() / max(b.numel(), 1))
            torch.testing.assert_close(a.double(), b.double(), rtol=2e-5, atol=4e-6 * scale + rounding)


@every_implementation
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("mask", "parity"), MASKS)
def test_what_is_dropped_has_no_effect(implementation: Implementation, mask: str, parity: int, layout: str) -> None:
    x, condition, offset, *others = forward(mask, parity, (2, 4, 3, 6))
    x = x.float()
    kept = reference.mask_apply(torch.ones_like(x), mask, parity) == 1
    spoilt = torch.where(kept, x, math.nan)
    args = [a.float().to(implementation.device) for a in (condition, offset)]
    want, got = (
        implementation.run("conditioner_input", [LAYOUTS[layout](a.to(implementation.device)), *args, *others])
        for a in (x, spoilt)
    )
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    h, mean, var = got
    rest = [args[1], mean, var, *others[2:], True]
    for a in (x, spoilt):
        x_there = LAYOUTS[layout](a.to(implementation.device))
        grad = implementation.run("conditioner_input_backward", [torch.ones_like(h), x_there, *rest])[0].cpu()
        assert grad.isfinite().all()
        assert not grad[~kept].any()


@every_implementation
def test_nan_and_infinities_without_statistics(implementation: Implementation) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45, 2.0], device=implementation.device).view(1, 1, 2, 3)
    args = [None, None, None, None, "checkerboard"]
    for parity in (0, 1):
        h = implementation.run("conditioner_input", [x, *args, parity, 2.0, EPS])[0].cpu()
        want = reference.conditioner_input(x.cpu(), None, None, mask="checkerboard", parity=parity, gain=2.0)[0]
        torch.testing.assert_close(h, want, equal_nan=True)


@pytest.mark.parametrize(("mask", "parity"), MASKS)
def test_given_statistics_are_constants(mask: str, parity: int) -> None:
    x, condition, offset, mean, var, *_ = forward(mask, parity, (2, 2, 2, 3), "given")
    args = [a.requires_grad_() for a in (x, condition, offset)]
    mean.requires_grad_()
    var.requires_grad_()

    def function(*a: Tensor) -> Tensor:
        return ops.conditioner_input(*a, mean, var, mask=mask, parity=parity, gain=2.0)[0]

    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)
    assert torch.autograd.grad(function(*args).sum(), (mean, var), allow_unused=True) == (None, None)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_public_function_equals_the_reference(layout: str) -> None:
    for (mask, parity), norm, beside in itertools.product(MASKS, ("batch", "given", "none"), (None, 2)):
        x, condition, offset, mean, var, *_ = forward(mask, parity, (2, 4, 3, 4), norm, beside)
        args = [None if a is None else LAYOUTS[layout](a) for a in (x, condition, offset)]
        got, want = (
            functions.conditioner_input(*args, mean, var, mask=mask, parity=parity, gain=2.0)
            for functions in (ops, reference)
        )
        assert (got[1] is None) == (norm == "none")
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


x, offset = torch.ones(2, 4, 3, 3), torch.ones(4)


@pytest.mark.parametrize(
    ("args", "mask", "error", "text"),
    [
        (
            (x.int(), None, None),
            "channel",
            TypeError,
            "conditioner_input: x must be a floating Tensor, got torch.int32",
        ),
        ((x, None, None), "stripes", ValueError, 'conditioner_input: mask must be "checkerboard" or "channel", got'),
        ((x[:, :3], None, None), "channel", ValueError, "conditioner_input: x must be [B, C, ...] with an even number"),
        ((x, x.half(), None), "channel", TypeError, "conditioner_input: condition must have the dtype of x"),
        (
            (x, x[:1], None),
            "channel",
            ValueError,
            "conditioner_input: condition must be [2, K, 3, 3], got [1, 4, 3, 3]",
        ),
        ((x, None, offset), "channel", ValueError, "conditioner_input: offset must be [2], got [4]"),
        ((x, None, offset.int()), "channel", TypeError, "conditioner_input: offset must be a floating Tensor, got"),
        (
            (x, None, None, offset, offset),
            "checkerboard",
            ValueError,
            "conditioner_input: mean and var must be None without an offset, for nothing is normalised",
        ),
        (
            (x, None, offset, None, offset),
            "checkerboard",
            ValueError,
            "conditioner_input: mean and var must be given together, got var only",
        ),
        (
            (x[:0], None, offset),
            "checkerboard",
            ValueError,
            "conditioner_input: x must have at least one entry per channel, or mean and var be given, got [0, 4, 3, 3]",
        ),
    ],
)
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: Any, args: Any, mask: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        functions.conditioner_input(*args, mask=mask, parity=0)
    assert str(caught.value).startswith(text)
