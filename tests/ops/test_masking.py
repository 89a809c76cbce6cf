"""Every implementation of the masking ops against the reference, bit for bit."""

import math
from typing import Any, ClassVar

import pytest
import torch
from op_tests import (
    DEVICES,
    LAYOUTS,
    Case,
    Implementation,
    OpTests,
    implementations,
    use_threads,
)
from tensors import normal
from torch import Tensor

from pnf import ops
from pnf.reference import masking as reference

CASES = [(mask, parity) for mask in reference.MASKS for parity in (0, 1)]
SHAPES = {
    "checkerboard": [
        (2, 3, 8, 8), (2, 3, 4, 6), (2, 4, 5, 6), (2, 2, 6, 5), (3, 2, 5, 7), (1, 1, 1, 1), (2, 3, 1, 9), (2, 3, 9, 1),
        (2, 3, 16), (2, 3, 7), (1, 1, 1), (1, 1, 40000), (1, 1, 40001), (4, 8, 64, 66), (4, 3, 65, 129),
        (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0), (2, 3, 0),
    ],
    "channel": [
        (2, 4, 8, 8), (2, 6, 5, 3), (2, 2), (5, 10), (2, 2, 7), (3, 4, 2, 3, 5), (1, 2, 200, 200), (64, 12, 16, 17),
        (0, 4, 4, 4), (2, 0, 4, 4), (2, 4, 0, 4), (0, 2),
    ],
}  # fmt: skip
SHAPED_CASES = [(mask, parity, shape) for mask, parity in CASES for shape in SHAPES[mask]]
IMPLEMENTATIONS = implementations("mask_apply")


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """A tensor of random bits, including NaNs with payloads."""
    entry = torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype is torch.bool else 256
    bits = torch.randint(0, high, (*shape, entry), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return (bits.view(dtype).squeeze(-1) if bits.numel() else torch.empty(shape, dtype=dtype)).to(device)


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert got.device == want.device
    assert got.shape == want.shape
    if want.numel():
        assert torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (got, want)))


def last_in_memory(x: Tensor) -> bool:
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def count_channels(shape: tuple[int, ...], mask: str) -> int:
    return shape[1] // 2 if mask == "channel" else shape[1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize(("mask", "parity", "shape"), SHAPED_CASES)
def test_equals_the_reference_bit_for_bit(
    mask: str, parity: int, shape: tuple[int, ...], implementation: Implementation
) -> None:
    source = make(shape, device=implementation.device)
    want = reference.mask_apply(source, mask, parity)
    want_halves = reference.mask_pack(source, mask, parity)
    for layout in LAYOUTS.values():
        x = layout(source)
        assert_same_bits(*implementation.run("mask_apply", [x, mask, parity]), want)
        halves = implementation.run("mask_pack", [x, mask, parity])
        for got, half in zip(halves, want_halves, strict=True):
            assert_same_bits(got, half)
        for packed in (halves, [layout(half) for half in halves]):
            assert_same_bits(*implementation.run("mask_unpack", [*packed, mask, parity, shape[2:]]), source)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize(("mask", "parity", "shape"), SHAPED_CASES)
def test_input_equals_the_reference_bit_for_bit(
    mask: str, parity: int, shape: tuple[int, ...], implementation: Implementation
) -> None:
    source, kept = make(shape, device=implementation.device), count_channels(shape, mask)
    for columns in (0, 1, 4):
        condition = make((shape[0], columns, *shape[2:]), device=implementation.device)
        grad = make((shape[0], kept + columns, *shape[2:]), device=implementation.device)
        want = reference.mask_input(source, condition, mask, parity)
        want_grad = grad[:, :kept]
        if mask == "channel":
            zero = torch.zeros_like(want_grad)
            want_grad = torch.cat((zero, want_grad) if parity else (want_grad, zero), 1)
        want_grad = reference.mask_apply(want_grad, mask, parity)
        for layout in LAYOUTS.values():
            x = layout(source)
            assert_same_bits(*implementation.run("mask_input", [x, layout(condition), mask, parity]), want)
            assert_same_bits(*implementation.run("mask_input", [x, condition, mask, parity]), want)
            got = implementation.run("mask_input_backward", [layout(grad), shape[1], mask, parity])
            assert_same_bits(*got, want_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128, torch.complex64, torch.bool,
    torch.uint8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn,
])  # fmt: skip
@pytest.mark.parametrize(("mask", "parity"), CASES)
def test_moves_the_bits_of_any_dtype(mask: str, parity: int, dtype: torch.dtype, layout: str, device: str) -> None:
    source = make((2, 4, 6, 10), dtype, device)
    bits = source.view(torch.uint8) if source.element_size() == 1 else source
    x = LAYOUTS[layout](source)
    assert_same_bits(ops.mask_apply(x, mask, parity), reference.mask_apply(bits, mask, parity).view(dtype))
    halves = ops.mask_pack(x, mask, parity)
    for got, want in zip(halves, reference.mask_pack(bits, mask, parity), strict=True):
        assert_same_bits(got, want.view(dtype))
    assert_same_bits(ops.mask_unpack(*halves, mask, parity, (6, 10)), source)
    got = ops.mask_input(x, x, mask, parity)
    assert_same_bits(got, reference.mask_input(bits, bits, mask, parity).view(dtype))
    x = torch.ops.pnf.mask_input_backward(got, 4, mask, parity)
    assert_same_bits(x, reference.mask_apply(bits, mask, parity).view(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("mask", "parity"), CASES)
def test_keeps_the_memory_format(mask: str, parity: int, device: str) -> None:
    source = make((2, 4, 6, 10), device=device)
    assert ops.mask_apply(source, mask, parity).is_contiguous()
    assert ops.mask_input(source, source, mask, parity).is_contiguous()
    x = source.contiguous(memory_format=torch.channels_last)
    assert ops.mask_apply(x, mask, parity).is_contiguous(memory_format=torch.channels_last)
    assert ops.mask_input(x, source, mask, parity).is_contiguous(memory_format=torch.channels_last)
    halves = ops.mask_pack(x, mask, parity)
    assert all(last_in_memory(half) for half in halves)
    whole = ops.mask_unpack(*halves, mask, parity, (6, 10))
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert whole.stride() == x.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("mask", "parity"), CASES)
def test_drops_nan_and_keeps_signed_zeros(mask: str, parity: int, device: str) -> None:
    nan = torch.full((2, 4, 6, 6), math.nan, device=device)
    zeros = ops.mask_pack(ops.mask_apply(nan, mask, parity), mask, parity)[1]
    assert_same_bits(zeros, torch.zeros_like(zeros))
    grad = torch.ops.pnf.mask_input_backward(ops.mask_input(nan, nan, mask, parity), 4, mask, parity)
    zeros = ops.mask_pack(grad, mask, parity)[1]
    assert_same_bits(zeros, torch.zeros_like(zeros))
    negative = ops.mask_pack(ops.mask_apply(-torch.zeros_like(nan), mask, parity), mask, parity)[0]
    assert torch.signbit(negative).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("mask", "parity"), CASES)
def test_threads_change_nothing(mask: str, parity: int, layout: str) -> None:
    shape = (7, 6, 65, 130)
    x, condition = LAYOUTS[layout](make(shape)), make(shape)
    results = []
    for count in (1, 2, 5):
        with use_threads(count):
            halves = torch.ops.pnf.mask_pack(x, mask, parity)
            together = ops.mask_input(x, condition, mask, parity)
            results.append(
                [
                    ops.mask_apply(x, mask, parity),
                    *halves,
                    ops.mask_unpack(*halves, mask, parity, shape[2:]),
                    together,
                    torch.ops.pnf.mask_input_backward(together, shape[1], mask, parity),
                ]
            )
    for others in results[1:]:
        for got, want in zip(others, results[0], strict=True):
            assert_same_bits(got, want)


@pytest.mark.slow
def test_counts_past_two_to_the_31() -> None:
    n = 2**31 + 6
    x = torch.zeros(1, 1, n, dtype=torch.int8)
    x[..., -3:] = torch.tensor([1, 2, 3], dtype=torch.int8)
    kept, rest = ops.mask_pack(x, "checkerboard", 0)
    assert kept[0, 0, -2:].tolist() == [0, 2]
    assert rest[0, 0, -2:].tolist() == [1, 3]
    del x
    assert ops.mask_unpack(kept, rest, "checkerboard", 0, (n,))[0, 0, -4:].tolist() == [0, 1, 2, 3]


def halves_of(x: Tensor, mask: str, parity: int) -> list[Any]:
    return [*reference.mask_pack(x, mask, parity), mask, parity, list(x.shape[2:])]


class TestMasking(OpTests):
    cases: ClassVar = {
        "apply-checkerboard": Case("mask_apply", lambda: [normal(2, 3, 5, 7), "checkerboard", 1]),
        "apply-channel": Case("mask_apply", lambda: [normal(2, 4, 3, 5), "channel", 0]),
        "pack-checkerboard": Case("mask_pack", lambda: [normal(2, 3, 3, 4), "checkerboard", 0]),
        "pack-channel": Case("mask_pack", lambda: [normal(2, 4, 3, 5), "channel", 1]),
        "unpack-checkerboard": Case("mask_unpack", lambda: halves_of(normal(2, 3, 5, 7), "checkerboard", 1)),
        "unpack-channel": Case("mask_unpack", lambda: halves_of(normal(2, 4, 3, 5), "channel", 0)),
        "input-checkerboard": Case("mask_input", lambda: [normal(2, 3, 3, 4), normal(2, 2, 3, 4), "checkerboard", 1]),
        "input-channel": Case("mask_input", lambda: [normal(2, 4, 7), normal(2, 3, 7), "channel", 1]),
        "input_backward-checkerboard": Case("mask_input_backward", lambda: [normal(2, 5, 3, 4), 3, "checkerboard", 0]),
        "input_backward-channel": Case("mask_input_backward", lambda: [normal(2, 5, 3, 4), 4, "channel", 1]),
    }


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_dtypes_alone(device: str) -> None:
    x = torch.randn(2, 4, 6, 8, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert ops.mask_apply(x, "channel", 0).dtype == torch.float32
        assert ops.mask_input(x.bfloat16(), x.bfloat16(), "checkerboard", 0).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("mask", "parity"), CASES)
def test_captured_in_a_cuda_graph(mask: str, parity: int) -> None:
    x = make((2, 4, 6, 8), device="cuda")
    ops.mask_input(x, x, mask, parity)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.mask_input(x, x, mask, parity)
    x.copy_(make((2, 4, 6, 8)).flip(0))
    graph.replay()
    assert_same_bits(out, reference.mask_input(x, x, mask, parity))


X = torch.zeros(2, 4, 6, 8)
MISTAKES = [
    ("mask_apply", (1, "channel", 0), TypeError, "mask_apply: x must be a Tensor, got int"),
    ("mask_apply", (X, "stripes", 0), ValueError,
     "mask_apply: mask must be \"checkerboard\" or \"channel\", got 'stripes'"),
    ("mask_pack", (X, "channel", 2), ValueError, "mask_pack: parity must be 0 or 1, got 2"),
    ("mask_pack", (X[:, :3], "channel", 0), ValueError,
     "mask_pack: x must be [B, C, ...] with an even number of channels, got [2, 3, 6, 8]"),
    ("mask_apply", (X[0, 0], "checkerboard", 0), ValueError,
     "mask_apply: x must be [B, C, D] or [B, C, H, W] for a checkerboard, got [6, 8]"),
    ("mask_unpack", (X, None, "channel", 0, (6, 8)), TypeError, "mask_unpack: rest must be a Tensor, got NoneType"),
    ("mask_unpack", (X, X.double(), "channel", 0, (6, 8)), TypeError,
     "mask_unpack: rest must have the dtype of kept, torch.float32, got torch.float64"),
    ("mask_unpack", (X, X[:1], "channel", 0, (6, 8)), ValueError,
     "mask_unpack: kept and rest must both be [B, C, 6, 8], got [2, 4, 6, 8] and [1, 4, 6, 8]"),
    ("mask_unpack", (X[0], X[0], "checkerboard", 0, (2, 2, 4)), ValueError,
     "mask_unpack: size must be (D,) or (H, W) for a checkerboard, got (2, 2, 4)"),
    ("mask_unpack", (X, X, "checkerboard", 0, (6, 8)), ValueError,
     "mask_unpack: kept and rest must be [B, C, n], got [2, 4, 6, 8] and [2, 4, 6, 8]"),
    ("mask_unpack", (X[0], X[0], "checkerboard", 1, (3, 5)), ValueError,
     "mask_unpack: size (3, 5) and parity 1 want 7 kept and 8 other sites, got 8 and 8"),
    ("mask_input", (X, 1, "channel", 0), TypeError, "mask_input: condition must be a Tensor, got int"),
    ("mask_input", (X, X.half(), "channel", 0), TypeError,
     "mask_input: condition must have the dtype of x, torch.float32, got torch.float16"),
    ("mask_input", (X, X[..., :4], "channel", 0), ValueError,
     "mask_input: condition must be [2, K, 6, 8], got [2, 4, 6, 4]"),
]  # fmt: skip


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(("name", "args", "error", "text"), MISTAKES)
def test_names_the_mistake(functions: object, name: str, args: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        getattr(functions, name)(*args)
    assert str(caught.value) == text
