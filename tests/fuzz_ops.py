"""Random calls of every op, each implementation against the float64 reference: ``python tests/fuzz_ops.py --cases N``.

A call has a random shape, dtype, mode and, for each tensor, a random layout in memory. The same seed makes the same
calls; a failing one is shrunk and printed.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "support"))

from op_tests import DTYPES, Implementation, as_list, assert_accurate, convert, flatten, implementations

from pnf.ops._library import KERNELS

Draw = Callable[[st.SearchStrategy[Any]], Any]

# Entries, beyond which the interpreter of Triton takes too long.
INTERPRETED = 256

SIZES = st.sampled_from([*range(1, 10), 0, 15, 16, 17, 31, 33, 64, 65])
FILLINGS = 4

# Calls, after which every op must have been called.
ENOUGH = 400

LONG = st.sampled_from([127, 1024, 4097, 12289])


class Call(NamedTuple):
    """A call of an op.

    Attributes:
        op: its name in ``torch.ops.pnf``.
        args: in their dtypes and layouts.
        moves: whether the op only moves bits, so that its results are exact.
    """

    op: str
    args: Sequence[Any]
    moves: bool = False

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(show, self.args))})"


def show(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return f"[{', '.join(map(show, value))}]"
    if not isinstance(value, Tensor):
        return repr(value)
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype}{list(value.shape)} strides {value.stride()} offset {value.storage_offset()}"


def lay_out(draw: Draw, x: Tensor) -> Tensor:
    """X, or some of its entries repeated, somewhere in a larger memory and in any order of its dims."""
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
    """Draws the arguments of one call, with all its tensors of one dtype; the filling chooses their entries only."""

    def __init__(self, draw: Draw, filling: int) -> None:
        self.draw = draw
        self.dtype: torch.dtype = draw(st.sampled_from(DTYPES))
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)) + filling)
        self.scale: float = draw(st.sampled_from([1.0, 1.0, 1e-3, 30.0]))

    def normal(self, *shape: int, scale: float | None = None) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.entries(x * (self.scale if scale is None else scale))

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1], with both ends."""
        x = torch.rand(shape, generator=self.generator, dtype=torch.float64) * 1.02 - 0.01
        return self.entries(x.clamp(0, 1))

    def entries(self, x: Tensor) -> Tensor:
        """In a random layout; float32 has them too, so that in float64 its error is one of arithmetic alone."""
        return lay_out(self.draw, x.float().to(self.dtype))

    def shape(self, dims: tuple[int, int] = (1, 5), even: Sequence[int] = ()) -> list[int]:
        """Of so many dims, some of even size; mostly of less than 2^11 entries."""
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
"""Their count is beside those of the results by op and implementation."""

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


@st.composite
def calls(draw: Draw) -> list[Call]:
    """One call with several fillings."""
    function = draw(st.sampled_from(FAMILIES))
    drawn: list[Any] = []

    def record(strategy: st.SearchStrategy[Any]) -> Any:
        drawn.append(draw(strategy))
        return drawn[-1]

    found = [function(Maker(record, 0))]
    for filling in range(1, FILLINGS):
        again = iter(drawn)
        found.append(function(Maker(lambda strategy, again=again: next(again), filling)))  # noqa: ARG005
    return found


def order(x: Tensor) -> list[int]:
    """The strides that mean something."""
    return [stride for n, stride in zip(x.shape, x.stride(), strict=True) if n > 1] if x.numel() else []


def joined(outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Each output of all fillings: in a single small one the reference may be exact by luck."""
    return [torch.cat([x.flatten() for x in fillings]) for fillings in zip(*outputs, strict=True)]


RUNNERS: dict[str, list[Implementation]] = {}


def check(calls: Sequence[Call], counts: Counts) -> None:
    """Every implementation of the op that runs here in time."""
    op, moves = calls[0].op, calls[0].moves
    fallback = KERNELS[op]["reference"]
    lower = [convert(call.args, lambda x: x.float() if x.dtype is torch.float64 else x) for call in calls]
    low = [as_list(fallback(*args)) for args in lower]
    exact = [as_list(fallback(*convert(call.args, torch.Tensor.double))) for call in calls]
    before = [x.clone() for call in calls for x in flatten(call.args)]
    entries = sum(x.numel() for x in before)
    for implementation in RUNNERS.setdefault(op, implementations(op)):
        kind, device = implementation.kind, implementation.device
        if kind == "reference" or (kind == "triton" and device == "cpu" and entries > INTERPRETED):
            continue
        got = [implementation.run(op, convert(call.args, lambda x, to=device: x.to(to))) for call in calls]
        assert_accurate(joined(got), joined(low), joined(exact), str(implementation))
        for a, b in zip(chain(*got), chain(*low), strict=True):
            assert a.shape == b.shape, f"{implementation}: {list(a.shape)}, not {list(b.shape)}"
            assert order(a) == order(b), f"{implementation}: strides {a.stride()}, not {b.stride()}"
            assert not moves or a.cpu().double().equal(b.double()), f"{implementation}: moves the wrong entries"
        counts[op, str(implementation)] += len(calls)
    for a, b in zip((x for call in calls for x in flatten(call.args)), before, strict=True):
        assert a.equal(b), "an argument was changed"


def fuzz(cases: int, start: int, counts: Counts) -> None:
    """Check that many calls and raise for the smallest that fails."""

    @seed(start)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls())
    def run(call: list[Call]) -> None:
        check(call, counts)
        counts[CALLS] += 1

    run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    counts: Counts = Counter()
    try:
        fuzz(options.cases, options.seed, counts)
    except BaseExceptionGroup as group:
        failure: BaseException | None = group.exceptions[0]
    except Exception as error:
        failure = error
    else:
        failure = None
    calls = counts.pop(CALLS, 0)
    for (op, implementation), count in sorted(counts.items()):
        print(f"{count:8} {op} by {implementation}")
    if failure:
        print(*getattr(failure, "__notes__", []), failure, "FAILED", sep="\n")
        return 1
    print(f"{calls} calls, {counts.total()} results, all accurate")
    missing = KERNELS.keys() - {op for op, _ in counts}
    if missing and calls >= ENOUGH:
        print("never called:", *sorted(missing))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
