"""The compiled affine coupling against the reference."""

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
    use_level,
)
from tensors import normal
from torch import Tensor

from pnf import ops, reference
from pnf.ops._library import KERNELS

OPS = ["affine_coupling", "affine_coupling_inverse"]
MASKS = [(None, 0), ("checkerboard", 0), ("checkerboard", 1), ("channel", 0), ("channel", 1)]

# Planes that fill vectors or not, rows that are shorter or longer than a tile, and more than one chunk of a plane.
CALLS = [
    ((3, 2, 4, 8), None, 0),
    ((5, 7), None, 0),
    ((2, 1, 3, 2, 3), None, 0),
    ((2, 3, 4, 6), "checkerboard", 0),
    ((2, 2, 3, 5), "checkerboard", 1),
    ((1, 1, 70, 72), "checkerboard", 1),
    ((3, 4, 4, 4), "channel", 0),
    ((2, 1030), "channel", 1),
    ((1, 1, 1, 1), None, 0),
    ((2, 4, 0), "channel", 1),
    ((0, 3, 2), "checkerboard", 0),
]
INVERSE_CALLS = [
    ((2, 3, 4), None, 0),
    ((2, 2, 4, 5), "checkerboard", 1),
    ((3, 2, 4, 4), "channel", 0),
    ((2, 0), None, 0),
]


def arguments(op: str, shape: Sequence[int], mask: str | None, parity: int) -> list[Tensor | str | int | None]:
    batch, channels, *size = shape
    transformed = channels // 2 if mask == "channel" else channels
    tensors = [normal(*shape), normal(batch, 2 * transformed, *size), normal(transformed)]
    if op.endswith("backward"):
        return [normal(*shape), normal(batch), *tensors, mask, parity]
    return [*tensors, normal(batch), mask, parity]


def case(op: str, call: tuple[Sequence[int], str | None, int]) -> Case:
    return Case(op, lambda: arguments(op, *call))


class TestAffineCoupling(OpTests):
    cases = {
        f"{op} {mask} {parity} {shape}": case(op, (shape, mask, parity))
        for names, calls in ((OPS[:1], CALLS), (OPS[1:], INVERSE_CALLS))
        for op in (names[0], f"{names[0]}_backward")
        for shape, mask, parity in calls
    }


every_implementation = pytest.mark.parametrize("implementation", implementations("affine_coupling"), ids=str)
every_mask = pytest.mark.parametrize(("mask", "parity"), MASKS)
both_ways = pytest.mark.parametrize("op", OPS)


def on(implementation: Implementation, args: Sequence[object]) -> list[object]:
    return convert(args, lambda x: x.to(implementation.device))


def kept(shape: Sequence[int], mask: str | None, parity: int) -> Tensor:
    if mask is None:
        return torch.zeros(shape, dtype=torch.bool)
    return reference.mask_apply(torch.ones(shape), mask, parity) == 1


@every_mask
@both_ways
@every_implementation
def test_kept_entries_come_through_whatever_raw_is(
    implementation: Implementation, op: str, mask: str | None, parity: int
) -> None:
    x, raw, scale, log_det, *_ = convert(arguments(op, (2, 4, 3, 6), mask, parity), torch.Tensor.float)
    stay = kept(x.shape, mask, parity)
    x = torch.where(stay & (x > 0.5), torch.tensor(-0.0), x)
    x = torch.where(stay & (x < -0.5), torch.tensor(math.nan), x)
    if mask == "checkerboard":
        raw[kept(raw.shape, mask, parity)] = math.nan
    y, total = implementation.run(op, on(implementation, [x, raw, scale, log_det, mask, parity]))
    assert y.cpu()[stay].view(torch.int32).equal(x[stay].view(torch.int32))
    assert not y.cpu()[~stay].isnan().any()
    assert total.isfinite().all()
    grad = torch.randn_like(x)
    grad[stay & (x > 0)] = math.inf
    args = [grad, log_det, x, raw, scale, mask, parity]
    grad_x, grad_raw, grad_scale = implementation.run(f"{op}_backward", on(implementation, args))
    assert grad_x.cpu()[stay].equal(grad[stay])
    assert grad_raw.isfinite().all()
    assert grad_scale.isfinite().all()
    if mask == "checkerboard":
        assert not grad_raw.cpu()[kept(raw.shape, mask, parity)].any()


@both_ways
@every_implementation
def test_nan_infinities_and_denormals(implementation: Implementation, op: str) -> None:
    x = torch.tensor([[1.0, math.nan], [math.inf, -2.0], [1e-45, -0.0], [1.0, 2.0], [1.0, 1.0]])
    raw = torch.zeros(5, 4)
    raw[3, 2:] = torch.tensor([math.inf, -math.inf])
    raw[4] = torch.tensor([math.nan, 0.0, 0.0, math.nan])
    args = [x, raw, torch.tensor([0.5, 0.75]), torch.zeros(5)]
    got, want = implementation.run(op, [*on(implementation, args), None, 0]), getattr(reference, op)(*args)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, equal_nan=True, rtol=1e-6, atol=0)
    grads = torch.ones(5, 2), torch.ones(5)
    backward = [*on(implementation, [*grads, *args[:3]]), None, 0]
    exact = KERNELS[f"{op}_backward"]["reference"](*convert([*grads, *args[:3]], torch.Tensor.double), None, 0)
    for a, b in zip(implementation.run(f"{op}_backward", backward), exact, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_implementation
def test_neither_small_nor_large_u_cancels(implementation: Implementation, dtype: torch.dtype) -> None:
    if implementation.kind == "reference":
        return
    u = torch.tensor([1e-30, 1e-9, 1e-5, 1e-3, 0.3, 0.6, 0.7, 3.0, 7.5, 9.5, 15.0], dtype=dtype)
    u = torch.cat((u, -u)).view(-1, 1)
    raw, one, zero = torch.cat((u * 0, u), 1), torch.ones(1, dtype=dtype), torch.zeros(len(u), dtype=dtype)
    args = on(implementation, [u * 0, raw, one, zero])
    _, s = implementation.run("affine_coupling", [*args, None, 0])
    _, grad_raw, _ = implementation.run(
        "affine_coupling_backward", [args[0], zero.to(s.device) + 1, *args[:3], None, 0]
    )
    exact = [(math.tanh(v), 4 / (math.exp(v) + math.exp(-v)) ** 2) for v in u.flatten().tolist()]
    got = torch.stack((s, grad_raw[:, 1]), 1).cpu().double()
    rtol = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, torch.tensor(exact, dtype=torch.float64), rtol=rtol, atol=0)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.bfloat16, torch.float64),
        (torch.bfloat16, torch.float32, torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.float64, torch.float32),
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
        made = arguments("affine_coupling", (3, 4, 4, 8), "channel", 1)
        args = [x.float().to(dtype) for x, dtype in zip(made[:4], dtypes, strict=True)]
        args[:2] = (x.contiguous(memory_format=memory) for x in args[:2])
        grads = [normal(*args[0].shape).to(dtypes[0]), normal(3).float()]
        return [*grads, *args[:3], "channel", 1] if name.endswith("backward") else [*args, "channel", 1]

    torch.manual_seed(0)
    for name in (*OPS, *(f"{op}_backward" for op in OPS)):
        fallback = KERNELS[name]["reference"]
        args, low, exact, errors = draw(name, lambda n=name: call(n))
        got = implementation.run(name, on(implementation, args))
        assert [x.dtype for x in got] == [x.dtype for x in fallback(*args)]
        for a, b, c, error in zip(got, low, exact, errors, strict=True):
            assert_accurate([a], [b], [c], name, [error])


@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 3, 8200),
        (1, 2, 2, 8193),
        (2, 3, 20000),
        (1, 600, 2, 2),
        (300, 3),
        (9000, 1),
    ],
)
@both_ways
def test_long_rows_and_many_short_ones(op: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = "checkerboard" if len(shape) > 2 else None
    for name in (op, f"{op}_backward"):
        args, low, exact, errors = draw(name, lambda n=name: convert(arguments(n, shape, mask, 1), torch.Tensor.float))
        for implementation in implementations(op):
            if implementation.kind == "cpp":
                assert_accurate(implementation.run(name, args), low, exact, str(implementation), errors)
                last = convert(args, channels_last)
                assert_accurate(implementation.run(name, last), low, exact, f"{implementation}, channels last", errors)


@pytest.mark.parametrize("device", DEVICES)
@both_ways
def test_saves_its_arguments_only(op: str, device: str) -> None:
    x, raw, scale, log_det, *_ = convert(arguments(op, (2, 2, 3, 4), None, 0), lambda x: x.to(device).requires_grad_())
    y, total = getattr(ops, op)(x, raw, scale, log_det)
    saved = y.grad_fn.saved_tensors
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (x, raw, scale)]
    assert y.grad_fn is total.grad_fn
    (grad,) = torch.autograd.grad(total.sum(), log_det)
    assert grad.equal(torch.ones_like(log_det))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_dtypes_alone(device: str) -> None:
    args = convert(arguments("affine_coupling", (2, 2, 3, 4), None, 0), lambda x: x.float().to(device))
    with torch.autocast(device, torch.bfloat16):
        y, total = ops.affine_coupling(args[0], args[1].bfloat16(), *args[2:])
    assert (y.dtype, total.dtype) == (torch.float32, torch.float32)


def test_levels_agree_on_the_kept_half_of_a_wide_board() -> None:
    args = convert(arguments("affine_coupling", (1, 1, 2, 16386), "checkerboard", 0), torch.Tensor.float)
    stay = kept(args[0].shape, "checkerboard", 0)
    for implementation in implementations("affine_coupling"):
        if implementation.kind == "cpp":
            with use_level(implementation.level):
                y, _ = ops.affine_coupling(*args)
            assert (y == args[0]).equal(stay)


X, RAW, SCALE, LOG_DET = torch.zeros(2, 4, 3, 3), torch.zeros(2, 8, 3, 3), torch.zeros(4), torch.zeros(2)
MISTAKES = [
    ((X.int(), RAW, SCALE, LOG_DET), TypeError, "x must be a floating Tensor, got torch.int32"),
    ((X, None, SCALE, LOG_DET), TypeError, "raw must be a floating Tensor, got NoneType"),
    ((X, RAW, 1.0, LOG_DET), TypeError, "scale must be a floating Tensor, got float"),
    ((X, RAW, SCALE, LOG_DET.long()), TypeError, "log_det must be a floating Tensor, got torch.int64"),
    ((X, RAW, SCALE, LOG_DET, "rows"), ValueError, 'mask must be "checkerboard" or "channel", got \'rows\''),
    ((X, RAW, SCALE, LOG_DET, "channel", 2), ValueError, "parity must be 0 or 1, got 2"),
    ((X[:, :3], RAW, SCALE, LOG_DET, "channel"), ValueError,
     "x must be [B, C, ...] with an even number of channels, got [2, 3, 3, 3]"),
    ((X[:, 0, 0], RAW, SCALE, LOG_DET, "checkerboard"), ValueError,
     "x must be [B, C, D] or [B, C, H, W] for a checkerboard, got [2, 3]"),
    ((LOG_DET, RAW, SCALE, LOG_DET), ValueError, "x must be [B, C, ...], got [2]"),
    ((X, RAW[:, :4], SCALE, LOG_DET), ValueError,
     "raw must be [2, 8, 3, 3], the shift and u of each transformed channel, got [2, 4, 3, 3]"),
    ((X, RAW, SCALE, LOG_DET, "channel"), ValueError,
     "raw must be [2, 4, 3, 3], the shift and u of each transformed channel, got [2, 8, 3, 3]"),
    ((X, RAW, SCALE[:1], LOG_DET), ValueError, "scale must be [4], got [1]"),
    ((X, RAW[:, :4], SCALE, LOG_DET, "channel"), ValueError, "scale must be [2], got [4]"),
    ((X, RAW, SCALE, LOG_DET[:1]), ValueError, "log_det must be [2], got [1]"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "error", "text"), MISTAKES, ids=[text[:30] for *_, text in MISTAKES])
@both_ways
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: object, op: str, args: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        getattr(functions, op)(*args)
    assert str(caught.value) == f"{op}: {text}"
