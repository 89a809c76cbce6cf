"""Interpret Triton kernels without memory, and print JSON about the addresses they access: ``tracing.py first|rest``.

Every load gives zeros and no store is made, so that tensors of any size can be had. It tells

- how many bytes a call moves over the least, its arguments and its results: every lane that a mask lets through counts;
- for tensors of more than 2^31 entries, whether the first, some middle and the last programs stay within their tensors,
  write the last entries, and overflow no int32. The types of the indices are those of the compiled kernel, for both
  have the same front end; Triton's own check of overflows looks at every sum, difference and product.

``TRITON_INTERPRET=1`` must be set.
"""

import inspect
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl
from cases import CASES, FIRST, HUGE, ORDINARY, UNEVEN, Case, Meta, Shape
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from triton.runtime import interpreter
from triton.runtime.jit import mangle_type

import pnf.ops  # noqa: F401 - registers every family
from pnf.ops._library import KERNELS

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from interpreting import interpreting

builder = interpreter.interpreter_builder

SPACE = 2**44
"""The distance between the addresses of two tensors."""


class Trace:
    """The accesses to global memory of one call of an op.

    Attributes:
        whole: whether all programs are interpreted, and all turns of their loops.
        moved: the number of bytes.
        errors: descriptions of errors.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.moved = 0
        self.errors: set[str] = set()
        self.tensors: dict[int, Tensor] = {}
        self.ends: dict[int, int] = {}

    def address(self, x: Tensor) -> int:
        base = x.untyped_storage()._cdata
        place = next((i for i, other in self.tensors.items() if other.untyped_storage()._cdata == base), None)
        if place is None:
            place = len(self.tensors) + 1
            self.tensors[place] = x
        return place * SPACE + x.storage_offset() * x.itemsize

    def access(self, pointers: Any, mask: np.ndarray, write: bool) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = pointers.data[np.broadcast_to(mask.astype(bool), pointers.data.shape)]
        self.moved += size * addresses.size
        if not addresses.size:
            return
        first, last = int(addresses.min()), int(addresses.max())
        place = first // SPACE
        if place not in self.tensors or first % size or last + size > place * SPACE + self.nbytes(place):
            self.errors.add(f"{'store' if write else 'load'} out of bounds")
        elif write:
            self.ends[place] = max(self.ends.get(place, 0), last + size - place * SPACE)

    def nbytes(self, place: int) -> int:
        return self.tensors[place].untyped_storage().nbytes()

    def check_ends(self) -> None:
        for place, end in self.ends.items():
            if end != self.nbytes(place):
                self.errors.add("the last entry was not written")


class Torch(TorchDispatchMode):
    """Counts the bytes that PyTorch's functions move around the kernels. Views and allocations move none.

    Images that a convolution returns have their channels last, as on a GPU whose arguments have. The meta device lays
    them out otherwise, and the copies would be counted.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            tensors = [x for x in (*args, *(kwargs or {}).values(), out) if isinstance(x, Tensor)]
            self.trace.moved += sum({id(x): x.nbytes for x in tensors}.values())
        return tree_map_only(Tensor, channels_last, out) if "convolution" in func.name() else out


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    def load(pointers: Any, mask: Any, *others: Any) -> Any:  # noqa: ARG001
        kind = pointers.get_element_ty()
        trace.access(pointers, mask.data, write=False)
        return interpreter.TensorHandle(np.zeros(pointers.data.shape, interpreter._get_np_dtype(kind)), kind)

    def store(pointers: Any, value: Any, mask: Any, *others: Any) -> None:  # noqa: ARG001
        trace.access(pointers, mask.data, write=True)

    def argument(value: Any) -> Any:
        if isinstance(value, tuple):
            return type(value)(*map(argument, value))
        if isinstance(value, Tensor):
            data = np.array([trace.address(value)], np.uint64)
        elif isinstance(value, int) and not isinstance(value, bool):
            data = np.array([value], np.int32 if abs(value) < 2**31 else np.int64)
        else:
            return interpreter._implicit_cvt(value)
        kind = tl.str_to_ty(mangle_type(value), None)
        return tl.tensor(interpreter.TensorHandle(data, kind), kind)

    def turns(*bounds: Any) -> Sequence[int]:
        values = range(*map(int, bounds))
        return values if trace.whole else [values[turn] for turn in few(len(values))]

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        names = inspect.getfullargspec(self.fn).args
        bound = inspect.getcallargs(self.fn, *args, **{k: v for k, v in kwargs.items() if k in names})
        converted = {name: x if name in self.constexprs else argument(x) for name, x in bound.items()}
        grid = (*self.grid, 1, 1)[:3]
        if grid[0] >= 2**31 or max(grid[1:]) >= 2**16:
            trace.errors.add(f"no GPU takes a grid of {grid}")
        builder.set_grid_dim(*grid)
        interpreter._patch_lang(self.fn)
        self.fn.__globals__["range"] = turns
        try:
            count = math.prod(grid)
            for program in (
                range(count) if trace.whole else some(count, getattr(bound.get("tiles"), "programs", lambda: count)())
            ):
                z, rest = program % grid[2], program // grid[2]
                builder.set_grid_idx(rest // grid[1], rest % grid[1], z)
                self.fn(**converted)
        finally:
            del self.fn.__globals__["range"]

    before = interpreter.GridExecutor.__call__, builder.create_masked_load, builder.create_masked_store
    interpreter.GridExecutor.__call__, builder.create_masked_load, builder.create_masked_store = launch, load, store
    try:
        # An index that overflows for small tensors also overflows for huge ones.
        with interpreting(check_overflows=not trace.whole), np.errstate(all="ignore"), Torch(trace):
            yield
    finally:
        interpreter.GridExecutor.__call__, builder.create_masked_load, builder.create_masked_store = before


def some(count: int, parts: int) -> list[int]:
    """The first and the last programs, and some between them, on both sides of halves and thirds.

    Among programs that share a block, only the first, which writes the block's sums.
    """
    near = itertools.product((0, count // 3, count // 2, 2 * count // 3, count), (-2, -1, 0, 1))
    return sorted({*range(0, count, parts), *(at + step for at, step in near if 0 <= at + step < count)})


def few(count: int) -> list[int]:
    """The first and the last turns of a loop, and one between them."""
    return sorted({turn for turn in (0, 1, count // 2, count - 2, count - 1) if 0 <= turn < count})


def trace_case(case: Case, meta: Meta, shape: tuple[int, ...]) -> dict[str, Any]:
    huge = shape in HUGE
    trace = Trace(whole=not huge)
    arguments = case.arguments(meta, shape)
    try:
        with tracing(trace):
            out = KERNELS[case.op]["triton"](*arguments)
    except Exception as error:
        trace.errors.add(str(error))
        out = []
    results = [out] if isinstance(out, Tensor) else list(out)
    least = sum(x.nbytes for x in [*tensors(arguments), *results])
    if shape != ORDINARY:
        trace.check_ends()
    return {
        "op": case.op,
        "mode": case.mode,
        "dtype": str(meta.dtype).removeprefix("torch."),
        "layout": "channels_last" if meta.channels_last else "contiguous",
        "shape": "x".join(map(str, shape)),
        "ordinary": shape == ORDINARY,
        "huge": huge,
        "moved": trace.moved / least if least else 0,
        "expected": case.moved_last if meta.channels_last and case.moved_last else case.moved,
        "errors": sorted(trace.errors),
    }


def tensors(arguments: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for x in arguments:
        found += [x] if isinstance(x, Tensor) else tensors(x) if isinstance(x, list) else []
    return found


def part(case: Case, channels_last: bool, shape: Shape) -> str:
    """The part of a call: first one case of each op, contiguous, uneven and of one huge example, then all others."""
    one = shape in (UNEVEN, HUGE[-1]) or (shape == ORDINARY and not channels_last)
    return "first" if one and case in FIRST else "rest"


def trace_op(case_and_part: tuple[int, str]) -> list[dict[str, Any]]:
    index, wanted = case_and_part
    case = CASES[index]
    return [
        trace_case(case, Meta(torch.bfloat16, channels_last), shape)
        for channels_last in ((False, True) if case.channels_last else (False,))
        for shape in (ORDINARY, UNEVEN, *HUGE)
        if part(case, channels_last, shape) == wanted
    ]


if __name__ == "__main__":
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        print(json.dumps([*itertools.chain(*pool.map(trace_op, ((i, sys.argv[1]) for i in range(len(CASES)))))]))
