"""Random calls of every op, each implementation against the float64 reference: ``python tests/fuzz_ops.py --cases N``.

A call has a random shape, dtype, mode and, for each tensor, a random layout in memory. The same seed makes the same
calls; a failing one is shrunk and printed.
"""

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "support"))

from fuzzing import fuzz
from op_tests import DTYPES, Implementation, as_list, assert_accurate, convert, flatten, implementations, largest_errors

from pnf.ops._library import KERNELS
from pnf.ops.weight_norm import given
from pnf.reference.masking import rest_of

Draw = Callable[[st.SearchStrategy[Any]], Any]

# The largest number of entries for Triton's interpreter, which is slow.
INTERPRETED = 256

SIZES = st.sampled_from([*range(1, 10), 0, 15, 16, 17, 31, 33, 64, 65])
# The number of an output's entries that determine the error of the reference, and the most random fillings of the
# arguments to get them. In a few entries the reference may be exact by luck.
KNOWN, FILLINGS = 512, 256

# The number of fillings for the implementations, and of neighbours of each for the reference. One entry can be so
# large that only its error counts.
TRIED, NEIGHBOURS = 2, 4

# After this number of calls every op must have been called.
ENOUGH = 4000

LONG = st.sampled_from([127, 1024, 4097, 12289])


class Call(NamedTuple):
    """A call of an op.

    Attributes:
        op: its name in ``torch.ops.pnf``.
        args: the arguments in their dtypes and layouts.
        moves: whether the op only moves bits, so that its results are exact.
        rounds: the factor for the allowed error. Winograd's convolutions add and subtract more.
    """

    op: str
    args: Sequence[Any]
    moves: bool = False
    rounds: float = 1.0

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(show, self.args))})"


def show(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(x, Tensor) for x in value):
        return f"[{', '.join(map(show, value))}]"
    if not isinstance(value, Tensor):
        return repr(value)
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype}{list(value.shape)} strides {value.stride()} offset {value.storage_offset()}"


def lay_out(draw: Draw, x: Tensor) -> Tensor:
    """Lay out x, or some of its entries repeated, somewhere in a larger memory, with its dims in any order."""
    kind = draw(st.sampled_from(["contiguous", "channels_last", "permuted", "sliced", "expanded"]))
    if kind == "channels_last" and x.dim() > 2:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if kind == "permuted":
        order = draw(st.permutations(range(x.dim())))
        x = x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
    if kind == "sliced" and x.dim():
        dim, step, start = draw(st.integers(0, x.dim() - 1)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
        larger = list(x.shape)
        larger[dim] = start + step * x.shape[dim]
        view = x.new_empty(larger).narrow(dim, start, step * x.shape[dim])
        view = view[(slice(None),) * dim + (slice(None, None, step),)]
        x = view.copy_(x)
    if kind == "expanded" and x.dim() and x.numel():
        dim = draw(st.integers(0, x.dim() - 1))
        x = x.narrow(dim, 0, 1).expand(x.shape)
    offset = draw(st.sampled_from([0, 0, 1, 2, 7]))
    if not offset:
        return x
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    moved = x.new_zeros(offset + extent)
    moved[offset:] = x.as_strided((extent,), (1,))
    return moved.as_strided(x.shape, x.stride(), offset)


class Maker:
    """Draws the arguments of one call, all of one dtype. The filling only chooses their entries."""

    def __init__(self, draw: Draw, filling: int) -> None:
        self.draw = draw
        self.dtype: torch.dtype = draw(st.sampled_from(DTYPES))
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)) + filling)
        self.scale: float = draw(st.sampled_from([1.0, 1.0, 1e-3, 30.0]))

    def normal(self, *shape: int, scale: float | None = None) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.entries(x * (self.scale if scale is None else scale))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1], both ends included."""
        x = torch.rand(shape, generator=self.generator, dtype=torch.float64) * 1.02 - 0.01
        return self.entries(x.clamp(0, 1))

    def entries(self, x: Tensor) -> Tensor:
        """Lay out entries at random. They are float32 numbers, so that errors in float64 come from arithmetic alone."""
        return lay_out(self.draw, x.float().to(self.dtype))

    def shape(self, dims: tuple[int, int] = (1, 5), even: Sequence[int] = ()) -> list[int]:
        """A shape with a number of dims in a range, some of even size, mostly with less than 2^11 entries."""
        left = self.draw(st.sampled_from([2**11] * 15 + [2**16]))
        shape: list[int] = []
        for i in range(self.draw(st.integers(*dims))):
            n = self.draw(SIZES if left <= 2**11 else st.one_of(SIZES, LONG))
            n = n + n % 2 if i in even else n
            shape.append(n if n <= left else 2)
            left //= max(shape[-1], 1)
        return shape

    def wide_normal(self, *shape: int) -> Tensor:
        """A log-determinant or its gradient."""
        x = self.normal(*shape, scale=1.0)
        return x if self.dtype == torch.float64 else x.float()


CALLS = ("calls", "")
"""The key of the number of calls, among the counts of results by op and implementation."""

Counts = Counter[tuple[str, str]]

FAMILIES: list[Callable[[Maker], Call]] = []


def family(function: Callable[[Maker], Call]) -> Callable[[Maker], Call]:
    FAMILIES.append(function)
    return function


@family
def standard_normal(make: Maker) -> Call:
    z = make.normal(*make.shape())
    if make.draw(st.booleans()):
        return Call("standard_normal", [z])
    return Call("standard_normal_backward", [make.wide_normal(z.shape[0]), z])


@family
def masking(make: Maker) -> Call:
    mask, parity = make.draw(st.sampled_from(["checkerboard", "channel"])), make.draw(st.integers(0, 1))
    x = make.normal(*make.shape((2, 5) if mask == "channel" else (3, 4), even=[1]))
    op = make.draw(st.sampled_from(["apply", "pack", "unpack", "input", "input_backward"]))
    if op == "unpack":
        kept, rest = KERNELS["mask_pack"]["reference"](x, mask, parity)
        halves = [lay_out(make.draw, half) for half in (kept, rest)]
        return Call("mask_unpack", [*halves, mask, parity, list(x.shape[2:])], moves=True)
    if op == "input":
        condition = make.normal(x.shape[0], make.draw(st.integers(0, 4)), *x.shape[2:])
        return Call("mask_input", [x, condition, mask, parity], moves=True)
    if op == "input_backward":
        return Call("mask_input_backward", [x, 2 * make.draw(st.integers(0, x.shape[1] // 2)), mask, parity], True)
    return Call(f"mask_{op}", [x, mask, parity], moves=True)


@family
def logit(make: Maker) -> Call:
    op, alpha = make.draw(st.sampled_from(["logit", "logit_inverse"])), make.draw(st.sampled_from([0.0, 0.05, 0.4]))
    shape = make.shape()
    x = make.uniform(*shape) if op == "logit" else make.normal(*shape)
    if make.draw(st.booleans()):
        return Call(op, [x, alpha])
    return Call(f"{op}_backward", [make.normal(*shape), make.wide_normal(shape[0]), x, alpha])


@family
def squeeze(make: Maker) -> Call:
    order = make.draw(st.sampled_from(["plain", "factor"]))
    b, c, h, w = make.shape((4, 4))
    if make.draw(st.booleans()):
        return Call("squeeze", [make.normal(b, c, 2 * h, 2 * w), order], moves=True)
    return Call("squeeze_inverse", [make.normal(b, 4 * c, h, w), order], moves=True)


def halved(shape: Sequence[int], dim: int) -> list[int]:
    return [n // 2 if i == dim else n for i, n in enumerate(shape)]


@family
def haar(make: Maker) -> Call:
    factor = make.draw(st.sampled_from([0.5, 1.0]))
    if make.draw(st.booleans()):
        dim = make.draw(st.integers(0, 3))
        shape = make.shape((dim + 1, max(dim + 1, 4)), even=[dim])
        which = dim - make.draw(st.sampled_from([0, len(shape)]))
        if make.draw(st.booleans()):
            return Call("haar_split", [make.normal(*shape), which, factor])
        s, d = (make.normal(*halved(shape, dim)) for _ in range(2))
        return Call("haar_merge", [s, d, which, factor])
    axes, levels = make.draw(st.sampled_from(["x", "y", "xy", "yx"])), make.draw(st.integers(1, 3))
    shape = make.shape((0, 2) if axes == "x" else (1, 2))
    sizes = [make.draw(st.integers(1, 5)) for _ in range(1 if axes == "x" and make.draw(st.booleans()) else 2)]
    shape += [n << levels * (axis in axes) for n, axis in zip(sizes[::-1], "xy", strict=False)][::-1]
    x = make.normal(*shape)
    if make.draw(st.booleans()):
        return Call("haar_pyramid", [x, levels, axes, factor])
    parts = [make.normal(*part.shape) for part in KERNELS["haar_pyramid"]["reference"](x, levels, axes, factor)]
    return Call("haar_pyramid_inverse", [parts, axes, factor])


@family
def act_norm(make: Maker) -> Call:
    x = make.normal(*make.shape((2, 5)))
    shift, log_scale = (lay_out(make.draw, make.wide_normal(x.shape[1])) for _ in range(2))
    op, per_example = make.draw(st.sampled_from(["act_norm", "act_norm_inverse"])), make.wide_normal(x.shape[0])
    if make.draw(st.booleans()):
        return Call(op, [x, shift, log_scale, per_example])
    return Call(f"{op}_backward", [make.normal(*x.shape), per_example, x, shift, log_scale])


@family
def affine_coupling(make: Maker) -> Call:
    mask = make.draw(st.sampled_from(["checkerboard", "channel", None]))
    shape = make.shape((3, 4) if mask == "checkerboard" else (2, 5), even=[1])
    moved = shape[1] // 2 if mask == "channel" else shape[1]
    x, raw = make.normal(*shape), make.normal(shape[0], 2 * moved, *shape[2:], scale=1.0)
    scale, log_det = make.wide_normal(moved), make.wide_normal(shape[0])
    op, parity = (
        make.draw(st.sampled_from(["affine_coupling", "affine_coupling_inverse"])),
        make.draw(st.integers(0, 1)),
    )
    if make.draw(st.booleans()):
        return Call(op, [x, raw, scale, log_det, mask, parity])
    grads = make.normal(*shape), make.wide_normal(shape[0])
    return Call(f"{op}_backward", [*grads, x, raw, scale, mask, parity])


@family
def haar_bounded(make: Maker) -> Call:
    dim = make.draw(st.integers(2, 3))
    shape = make.shape((dim + 1, 4), even=[dim])
    half = halved(shape, dim)
    gamma = lay_out(make.draw, make.wide_normal(shape[1]))
    if make.draw(st.booleans()):
        arguments = [make.uniform(*shape), gamma, dim]
        if make.draw(st.booleans()):
            return Call("haar_bounded_split", arguments)
        grads = make.normal(*half), make.normal(*half), make.wide_normal(shape[0])
        return Call("haar_bounded_split_backward", [*grads, *arguments])
    arguments = [make.uniform(*half), make.normal(*half), gamma, dim]
    if make.draw(st.booleans()):
        return Call("haar_bounded_merge", arguments)
    return Call("haar_bounded_merge_backward", [make.normal(*shape), make.wide_normal(shape[0]), *arguments])


@family
def lattice(make: Maker) -> Call:
    dim, levels = make.draw(st.integers(0, 3)), make.draw(st.sampled_from([1, 2, 3, 5, 8]))
    shape = make.shape((dim + 1, max(dim + 1, 4)), even=[dim])
    whole, noise = (torch.rand(shape, generator=make.generator, dtype=torch.float64) for _ in range(2))
    # No rounding error takes such noise to another level.
    x = make.entries(((levels * whole).floor() + 0.1 + 0.8 * noise) / levels)
    which = dim - make.draw(st.sampled_from([0, len(shape)]))
    if make.draw(st.booleans()):
        return Call("lattice_split", [x, levels, which])
    parts = KERNELS["lattice_split"]["reference"](x, levels, which)
    return Call("lattice_merge", [*(lay_out(make.draw, part) for part in parts), levels, which])


def statistics(make: Maker, channels: int) -> tuple[Tensor, Tensor]:
    """A mean and a variance."""
    return make.wide_normal(channels), make.wide_normal(channels).square() + 0.1


@family
def batch_norm(make: Maker) -> Call:
    mask = make.draw(st.sampled_from([None, "checkerboard", "channel"]))
    shape = make.shape((3, 4), even=[1]) if mask else make.shape((2, 5))
    parity = make.draw(st.integers(0, 1))
    x = make.normal(*shape)
    channels, sites = rest_of(x, mask, parity)
    given = statistics(make, channels)
    # An empty batch has no statistics.
    batch = make.draw(st.booleans()) and shape[0] * channels * sites > 0
    log_det, others = make.wide_normal(shape[0]), [1e-4, mask, parity]
    if make.draw(st.booleans()):
        return Call("batch_norm", [x, log_det, *((None, None) if batch else given), *others])
    return Call("batch_norm_backward", [make.normal(*shape), log_det, x, *given, *others, batch])


@family
def batch_norm_relu(make: Maker) -> Call:
    x = make.normal(*make.shape((2, 5)))
    weight, bias = make.wide_normal(x.shape[1]), make.wide_normal(x.shape[1])
    given = statistics(make, x.shape[1])
    # An empty batch has no statistics.
    batch = make.draw(st.booleans()) and x.numel() > 0
    if make.draw(st.booleans()):
        return Call("batch_norm_relu", [x, weight, bias, *((None, None) if batch else given), 1e-4])
    return Call("batch_norm_relu_backward", [make.normal(*x.shape), x, weight, bias, *given, 1e-4, batch])


@family
def conditioner_input(make: Maker) -> Call:
    mask, parity = make.draw(st.sampled_from(["checkerboard", "channel"])), make.draw(st.integers(0, 1))
    shape = make.shape((3, 4), even=[1])
    kept = shape[1] // 2 if mask == "channel" else shape[1]
    others = make.draw(st.integers(0, 4))
    x, condition = make.normal(*shape), make.normal(shape[0], others, *shape[2:])
    offset = make.draw(st.sampled_from([None, make.wide_normal(kept)]))
    given = statistics(make, 0 if offset is None else kept)
    batch = make.draw(st.booleans()) and x.numel() > 0
    gain = make.draw(st.sampled_from([1.0, 2.0]))
    if make.draw(st.booleans()):
        used = (None, None) if batch or offset is None else given
        return Call("conditioner_input", [x, condition if others else None, offset, *used, mask, parity, gain, 1e-4])
    grad = make.normal(shape[0], 2 * kept + (mask == "checkerboard") + others, *shape[2:])
    return Call("conditioner_input_backward", [grad, x, offset, *given, mask, parity, gain, 1e-4, batch])


@family
def convolution(make: Maker) -> Call:
    channels = st.sampled_from([16, 32, 48, 3, 7])
    batch, inputs, outputs = make.draw(st.integers(0, 3)), make.draw(channels), make.draw(channels)
    size = [make.draw(st.integers(1, 9)) for _ in range(2)]
    taps = make.draw(st.sampled_from([(3, 3), (1, 1), (1, 3)]))
    x, weight = make.normal(batch, inputs, *size), make.normal(outputs, inputs, *taps)
    if make.draw(st.booleans()):
        add = make.normal(batch, outputs, *size) if make.draw(st.booleans()) else None
        return Call("convolution", [x, weight, make.normal(outputs), add, make.draw(st.booleans())], rounds=2)
    arguments = [make.normal(batch, outputs, *size), x, weight, make.draw(st.booleans())]
    return Call("convolution_backward", arguments, rounds=2)


@family
def dense_network(make: Maker) -> Call:
    batch, kept, others = (make.draw(st.sampled_from(n)) for n in ([0, 1, 3, 30, 230], [0, 1, 5, 32], [0, 3, 16, 33]))
    make.scale = 1.0  # products of several layers would leave float16's range
    widths = [make.draw(st.sampled_from([3, 16, 40])) for _ in range(make.draw(st.integers(1, 3)))]
    weights = [make.normal(o, i) for i, o in pairwise([kept + others, *widths])]
    x, condition = make.normal(batch, kept), make.normal(batch, others) if others else None
    arguments = [x, condition, weights, [make.normal(o) for o in widths]]
    if make.draw(st.booleans()):
        return Call("dense_network", arguments, rounds=len(widths))
    _, hidden = KERNELS["dense_network"]["reference"](*arguments)
    wanted = [make.draw(st.booleans()), condition is not None and make.draw(st.booleans())]
    grad = make.normal(batch, widths[-1])
    return Call("dense_network_backward", [grad, *arguments, lay_out(make.draw, hidden), *wanted], rounds=len(widths))


@family
def residual_network(make: Maker) -> Call:
    batch, hidden, outputs = (make.draw(st.sampled_from(n)) for n in ([0, 1, 3], [16, 32, 5], [1, 6, 16]))
    make.scale = 1.0  # products of several layers would leave float16's range
    skip, blocks, size = (hidden, hidden, 1, 1), make.draw(st.integers(0, 2)), make.draw(st.sampled_from([1, 3]))
    shapes = [skip, *[(hidden, hidden, size, size), (hidden, hidden, size, size), skip] * blocks]
    shapes.append((outputs, hidden, 1, 1))
    magnitudes = [make.normal(o, 1, 1, 1) if make.draw(st.booleans()) else None for o, *_ in shapes]
    normed, norms = make.draw(st.booleans()), []
    for _ in range(2 * blocks + 1 if normed else 0):
        norms += [make.normal(hidden) for _ in range(3)]
        norms.append(make.entries(torch.rand(hidden, generator=make.generator, dtype=torch.float64) + 0.5))
    h = make.normal(batch, hidden, *[make.draw(st.integers(1, 6)) for _ in range(2)])
    filters = [make.normal(*shape) for shape in shapes], *given(magnitudes), [make.normal(o) for o, *_ in shapes]
    # Each convolution may err twice as much as another op.
    return Call("residual_network", [h, *filters, norms, 1e-4], rounds=2 + 2 * blocks)


@family
def weight_norm(make: Maker) -> Call:
    shapes = [list(make.shape((2, 4))) for _ in range(make.draw(st.integers(1, 3)))]
    for shape in shapes:
        # The gradient of a row of one entry is 0, up to rounding errors of differences.
        shape[-1] += math.prod(shape[1:]) == 1
    directions = [make.normal(*shape) for shape in shapes]
    magnitudes = [
        make.normal(shape[0], *[1] * (len(shape) - 1)) if make.draw(st.booleans()) else None for shape in shapes
    ]
    if make.draw(st.booleans()):
        return Call("weight_norm", [directions, *given(magnitudes)])
    grads = [make.normal(*shape) for shape in shapes]
    return Call("weight_norm_backward", [grads, directions, *given(magnitudes)])


class Filled(NamedTuple):
    """A call whose tensors can be filled again.

    Attributes:
        function: makes the call.
        drawn: the random choices for it.
        call: the call with the first filling.
    """

    function: Callable[[Maker], Call]
    drawn: list[Any]
    call: Call

    def __repr__(self) -> str:
        return repr(self.call)

    def again(self, filling: int) -> Call:
        drawn = iter(self.drawn)
        return self.function(Maker(lambda _: next(drawn), filling))


@st.composite
def calls(draw: Draw) -> Filled:
    drawn: list[Any] = []

    def record(strategy: st.SearchStrategy[Any]) -> Any:
        drawn.append(draw(strategy))
        return drawn[-1]

    function = draw(st.sampled_from(FAMILIES))
    return Filled(function, drawn, function(Maker(record, 0)))


def order(x: Tensor) -> list[int]:
    """The strides of dims with more than one entry."""
    return [stride for n, stride in zip(x.shape, x.stride(), strict=True) if n > 1] if x.numel() else []


def lower(fallback: Callable[..., Any], call: Call, exact: Sequence[Tensor]) -> list[Tensor]:
    """The reference in the dtype of the call. For float64 it is in float32, whose error predicts that of float64.

    It only predicts the size, since constants are rounded differently in both. So it is doubled.
    """
    if flatten(call.args)[0].dtype is not torch.float64:
        return as_list(fallback(*call.args))
    low = as_list(fallback(*convert(call.args, torch.Tensor.float)))
    return low if call.moves else [(b + (b - a)).to(b.dtype) for a, b in zip(exact, low, strict=True)]


def neighbour(call: Call, generator: torch.Generator) -> Call:
    """The call with most entries some units nearer to zero. Its rounding errors differ, but have the same size."""

    def near(x: Tensor) -> Tensor:
        eps = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)
        units = torch.randint(4, x.shape, generator=generator) * eps
        # The ends of [0, 1] are special.
        return torch.where(x.abs() == 1, x, (x.double() * (1 - units)).float().to(x.dtype))

    return call._replace(args=convert(call.args, near))


def joined(outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Join each output over all fillings."""
    return [torch.cat([x.flatten() for x in fillings]) for fillings in zip(*outputs, strict=True)]


def moved(x: Tensor, device: str) -> Tensor:
    """Move a tensor to a device, with its gaps and its offset."""
    memory = x.new_empty(0).set_(x.untyped_storage())
    return memory.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


RUNNERS: dict[str, list[Implementation]] = {}


def check(filled: Filled, counts: Counts) -> None:
    """Check every implementation of the op that runs here and is fast enough."""
    op, moves = filled.call.op, filled.call.moves
    fallback = KERNELS[op]["reference"]
    low: list[list[Tensor]] = []
    exact: list[list[Tensor]] = []
    calls: list[Call] = []

    def refer(call: Call) -> None:
        exact.append(as_list(fallback(*convert(call.args, torch.Tensor.double))))
        low.append(lower(fallback, call, exact[-1]))

    for filling in range(FILLINGS):
        call = filled.again(filling)
        refer(call)
        if filling < TRIED:
            calls.append(call)
        if moves or min(x.numel() or KNOWN for x in exact[0]) * len(exact) >= KNOWN:
            break
    fillings = len(exact)
    generator = torch.Generator().manual_seed(0)
    for call in [] if moves else NEIGHBOURS * calls:
        refer(neighbour(call, generator))
    known = [filled.call.rounds * error for error in largest_errors(joined(low), joined(exact))]
    del low[fillings:], exact[fillings:]
    # A cast removes the gaps in a tensor's memory.
    own = exact if flatten(filled.call.args)[0].dtype is torch.float64 else low
    before = [x.clone() for call in calls for x in flatten(call.args)]
    entries = sum(x.numel() for x in before)
    for implementation in RUNNERS.setdefault(op, implementations(op)):
        kind, device = implementation.kind, implementation.device
        if kind == "reference" or (kind == "triton" and device == "cpu" and entries > INTERPRETED):
            continue
        got = [
            [x.cpu() for x in implementation.run(op, convert(call.args, lambda x, to=device: moved(x, to)))]
            for call in calls
        ]
        untried = [[x.to(a.dtype) for a, x in zip(got[0], outputs, strict=True)] for outputs in exact[len(got) :]]
        assert_accurate(joined(got + untried), joined(low), joined(exact), str(implementation), known)
        for a, b in zip(chain(*got), chain(*own[: len(got)]), strict=True):
            assert a.shape == b.shape, f"{implementation}: {list(a.shape)}, not {list(b.shape)}"
            assert order(a) == order(b), f"{implementation}: strides {a.stride()}, not {b.stride()}"
            assert not moves or a.double().equal(b.double()), f"{implementation}: moves the wrong entries"
        counts[op, str(implementation)] += len(calls)
    for a, b in zip((x for call in calls for x in flatten(call.args)), before, strict=True):
        assert a.equal(b), "an argument was changed"
    counts[CALLS] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    counts: Counts = Counter()
    try:
        fuzz(calls(), lambda call: check(call, counts), options.cases, options.seed)
    except BaseExceptionGroup as group:
        failure: BaseException | None = group.exceptions[0]
    except Exception as error:
        failure = error
    else:
        failure = None
    made = counts.pop(CALLS, 0)
    for (op, implementation), count in sorted(counts.items()):
        print(f"{count:8} {op} by {implementation}")
    if failure:
        print(*getattr(failure, "__notes__", []), failure, "FAILED", sep="\n")
        return 1
    print(f"{made} calls, {counts.total()} results, all accurate")
    missing = KERNELS.keys() - {op for op, _ in counts}
    if missing and made >= ENOUGH:
        print("never called:", *sorted(missing))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
