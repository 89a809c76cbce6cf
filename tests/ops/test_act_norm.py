"""The compiled ActNorm against the reference."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from op_tests import (
    DEVICES,
    Case,
    Implementation,
    OpTests,
    assert_accurate,
    channels_last,
    convert,
    draw,
    implementations,
    use_threads,
)
from tensors import normal
from torch import Tensor

from pnf import ops, reference
from pnf.ops._library import KERNELS

OPS = ["act_norm", "act_norm_inverse"]

# Rows and planes that fill vectors or not, examples of one site, and empty tensors.
SHAPES = [(3, 5, 3, 7), (40, 2), (7, 33), (2, 17, 9), (1, 1, 1), (0, 3, 2), (2, 3, 0), (2, 0)]
INVERSE_SHAPES = [(2, 3, 4, 4), (5, 7), (2, 2, 3, 2, 1), (0, 3)]


def arguments(op: str, shape: Sequence[int]) -> list[Tensor]:
    batch, channels, *_ = shape
    tensors = [normal(*shape), normal(channels), normal(channels)]
    return [normal(*shape), normal(batch), *tensors] if op.endswith("backward") else [*tensors, normal(batch)]


class TestActNorm(OpTests):
    # Second derivatives of the inverse differentiate its backward, since the backward alone does not need the shift.
    cases = {
        f"{op} {shape}": Case(
            op, lambda op=op, shape=shape: arguments(op, shape), differentiable=op != "act_norm_inverse_backward"
        )
        for name, shapes in zip(OPS, (SHAPES, INVERSE_SHAPES), strict=True)
        for op in (name, f"{name}_backward")
        for shape in shapes
    }


every_implementation = pytest.mark.parametrize("implementation", implementations("act_norm"), ids=str)
both_ways = pytest.mark.parametrize("op", OPS)


def on(implementation: Implementation, args: Sequence[Tensor]) -> list[Tensor]:
    return convert(args, lambda x: x.to(implementation.device))


@both_ways
@every_implementation
def test_nan_infinities_and_denormals(implementation: Implementation, op: str) -> None:
    x = torch.tensor([[1.0, math.nan, 1.0], [math.inf, -2.0, 2.0], [1e-45, -0.0, 3.0]])
    args = [x, torch.tensor([0.0, 0.5, -1.0]), torch.tensor([0.0, 0.25, -math.inf]), torch.zeros(3)]
    got, want = implementation.run(op, on(implementation, args)), getattr(reference, op)(*args)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, equal_nan=True, rtol=1e-6, atol=0)


@both_ways
@every_implementation
def test_what_lies_beyond_a_row_has_no_part_in_the_sums(implementation: Implementation, op: str) -> None:
    args = convert([*arguments(f"{op}_backward", (3, 2, 5))], torch.Tensor.float)
    args[3] = torch.tensor([math.inf, 1.0])
    _, grad_shift, grad_log_scale = implementation.run(f"{op}_backward", on(implementation, args))
    assert grad_shift.isfinite().all()
    assert grad_log_scale[1].isfinite()


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32, torch.bfloat16, torch.float64),
        (torch.bfloat16, torch.float32, torch.float32, torch.bfloat16),
        (torch.float16, torch.float32, torch.float16, torch.float32),
        (torch.float64, torch.float32, torch.float32, torch.float32),
    ],
    ids=lambda dtypes: " ".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@every_implementation
def test_mixed_dtypes(
    implementation: Implementation, memory: torch.memory_format, dtypes: Sequence[torch.dtype]
) -> None:
    def call(name: str) -> list[Any]:
        made = arguments("act_norm", (3, 4, 4, 8))
        args = [x.float().to(dtype) for x, dtype in zip(made, dtypes, strict=True)]
        args[0] = args[0].contiguous(memory_format=memory)
        grads = [normal(*args[0].shape).to(dtypes[0]), normal(3).float()]
        return [*grads, *args[:3]] if name.endswith("backward") else args

    torch.manual_seed(0)
    for name in (*OPS, *(f"{op}_backward" for op in OPS)):
        fallback = KERNELS[name]["reference"]
        args, low, exact, errors = draw(name, lambda n=name: call(n))
        got = implementation.run(name, on(implementation, args))
        assert [x.dtype for x in got] == [x.dtype for x in fallback(*args)]
        for a, b, c, error in zip(got, low, exact, errors, strict=True):
            assert_accurate([a], [b], [c], name, [error])


@pytest.mark.parametrize("shape", [(1, 2, 8200), (300, 3), (9000, 1), (130, 517), (40, 64, 4, 4), (2, 5, 3, 5000)])
@both_ways
def test_large_tensors_on_any_number_of_threads(op: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for name in (op, f"{op}_backward"):
        args, low, exact, errors = draw(name, lambda n=name: convert(arguments(n, shape), torch.Tensor.float))
        for memory in ("contiguous", "channels_last"):
            if memory == "channels_last":
                args = convert(args, channels_last)
            for implementation in implementations(op):
                if implementation.kind != "cpp":
                    continue
                results = []
                for threads in (1, 2, 3):
                    with use_threads(threads):
                        results.append(implementation.run(name, args))
                assert_accurate(results[0], low, exact, f"{implementation}, {memory}", errors)
                for others in results[1:]:
                    assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@both_ways
def test_saves_its_arguments_only(op: str, device: str) -> None:
    x, shift, log_scale, log_det = convert(arguments(op, (2, 2, 3, 4)), lambda x: x.to(device).requires_grad_())
    y, total = getattr(ops, op)(x, shift, log_scale, log_det)
    saved = y.grad_fn.saved_tensors
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (x, shift, log_scale)]
    assert y.grad_fn is total.grad_fn
    (grad,) = torch.autograd.grad(total.sum(), log_det)
    assert grad.equal(torch.ones_like(log_det))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_dtypes_alone(device: str) -> None:
    args = convert(arguments("act_norm", (2, 2, 3, 4)), lambda x: x.float().to(device))
    with torch.autocast(device, torch.bfloat16):
        y, total = ops.act_norm(*args)
    assert (y.dtype, total.dtype) == (torch.float32, torch.float32)


X, C, LOG_DET = torch.zeros(2, 4, 3, 3), torch.zeros(4), torch.zeros(2)
MISTAKES = [
    ((X.int(), C, C, LOG_DET), TypeError, "x must be a floating Tensor, got torch.int32"),
    ((X, 1.0, C, LOG_DET), TypeError, "shift must be a floating Tensor, got float"),
    ((X, C, None, LOG_DET), TypeError, "log_scale must be a floating Tensor, got NoneType"),
    ((X, C, C, LOG_DET.long()), TypeError, "log_det must be a floating Tensor, got torch.int64"),
    ((LOG_DET, C, C, LOG_DET), ValueError, "x must be [B, C, ...], got [2]"),
    ((X, C[:1], C, LOG_DET), ValueError, "shift must be [4], got [1]"),
    ((X, C, C.view(4, 1), LOG_DET), ValueError, "log_scale must be [4], got [4, 1]"),
    ((X, C, C, LOG_DET[:1]), ValueError, "log_det must be [2], got [1]"),
]


@pytest.mark.parametrize(("args", "error", "text"), MISTAKES, ids=[text[:30] for *_, text in MISTAKES])
@both_ways
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: object, op: str, args: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        getattr(functions, op)(*args)
    assert str(caught.value) == f"{op}: {text}"
