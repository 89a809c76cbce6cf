"""Interleaved timing of three implementations of an op, and of a copy of as many bytes.

The speed of a machine drifts from one second to the next, so only calls that run by turns can be compared.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pnf import ops, reference

IMPLEMENTATIONS = ["reference", "compiled", "pnf"]

# The implementations that most benchmarks compare.
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_pass = pytest.mark.parametrize("passes", ["forward", "forward+backward"])
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)

RTOL = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}

ROUND_SECONDS = 3e-4
RACE_SECONDS = 0.8
ROUNDS = (7, 200)

Call = Callable[[], Any]


class Race(NamedTuple):
    """The result of a race.

    Attributes:
        durations: seconds of a call in each round, for each implementation and for the copy.
        moved: the least number of bytes that the passes read and write. The copy moves as many.
    """

    durations: dict[str, list[float]]
    moved: int

    def seconds(self) -> dict[str, float]:
        return {name: statistics.median(durations) for name, durations in self.durations.items()}


class Replay:
    """A clock that replays measured durations, so that pytest-benchmark can record them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.durations: Iterator[float] = iter(())

    def read(self) -> float:
        return self.now

    def advance(self) -> None:
        self.now += next(self.durations, 0.0)


def calls(
    passes: str, make: Callable[[Any], Callable[..., Any]], arguments: Sequence[Tensor], backend: str
) -> dict[str, Call]:
    """For each implementation, a call of the passes that returns all outputs and gradients."""
    torch.compiler.reset()
    plain = make(reference)
    functions = {
        "reference": plain,
        "compiled": torch.compile(plain, fullgraph=True, dynamic=False, backend=backend),
        "pnf": make(ops),
    }
    backward = {"forward": False, "forward+backward": True}[passes]
    arguments = [a.detach().requires_grad_(backward and a.is_floating_point()) for a in arguments]
    if not backward:
        return {name: lambda function=function: as_list(function(*arguments)) for name, function in functions.items()}
    leaves = [a for a in arguments if a.requires_grad]
    grads = [torch.randn_like(out) for out in as_list(plain(*arguments)) if out.requires_grad]

    def both(function: Callable[..., Any]) -> list[Tensor]:
        outputs = as_list(function(*arguments))
        return [*outputs, *torch.autograd.grad([out for out in outputs if out.requires_grad], leaves, grads)]

    return {name: lambda function=function: both(function) for name, function in functions.items()}


def least_bytes(passes: str, arguments: Sequence[Tensor], results: Sequence[Tensor], saved: float) -> int:
    """Bytes of arguments and results, once each. The backward also reads the outputs' gradients and saved tensors."""
    moved = nbytes(arguments) + nbytes(results)
    if passes == "forward":
        return moved
    leaves = sum(a.is_floating_point() for a in arguments)
    outputs = [out for out in results[: len(results) - leaves] if out.is_floating_point()]
    return moved + nbytes(outputs) + round(saved * nbytes(arguments))


def check(calls: dict[str, Call], name: str) -> list[Tensor]:
    """Check that the results of an implementation are those of the reference.

    The tolerance allows any order of float32 sums, which matters most in generated code. The tests of the ops measure
    their precision.
    """
    got, want = calls[name](), calls["reference"]()
    for a, b in zip(got, want, strict=True):
        largest = b.nan_to_num(0, 0, 0).abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a, b, equal_nan=True, rtol=RTOL[b.dtype], atol=RTOL[b.dtype] * largest)
    return got


def race(
    passes: str,
    make: Callable[[Any], Callable[..., Any]],
    arguments: Sequence[Tensor],
    saved: float,
) -> Race:
    """Check the implementations and run them by turns."""
    runners = calls(passes, make, arguments, "inductor")
    results = [check(runners, name) for name in IMPLEMENTATIONS][-1]
    moved = least_bytes(passes, arguments, results, saved)
    device = arguments[0].device
    source = torch.zeros(max(moved // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    runners["copy"] = lambda: target.copy_(source)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return Race(by_turns(runners, now), moved)


def by_turns(runners: dict[str, Call], now: Callable[[], float]) -> dict[str, list[float]]:
    """The seconds of a call in each round, by the clock ``now``."""

    def timed(call: Call, repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call()
        return (now() - start) / repeats

    once = {name: min(timed(call, 1) for _ in range(3)) for name, call in runners.items()}
    repeats = {name: max(1, round(ROUND_SECONDS / seconds)) for name, seconds in once.items()}
    rounds = round(RACE_SECONDS / sum(once[name] * repeats[name] for name in runners))
    durations: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(min(max(rounds, ROUNDS[0]), ROUNDS[1])):
            # The order rotates, so that none always follows the one that leaves the best caches.
            order = [*order[1:], order[0]]
            for name in order:
                durations[name].append(timed(runners[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return durations


def as_list(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def describe(arguments: Sequence[Tensor]) -> str:
    """The shape and device of the largest argument, with its layout and dtype if they are unusual."""
    x = max(arguments, key=torch.Tensor.numel)
    words = ["x".join(map(str, x.shape))]
    if not x.is_contiguous():
        words.append("channels_last" if x.dim() > 2 and x.movedim(1, -1).is_contiguous() else "strided")
    if x.dtype != torch.float32:
        words.append(str(x.dtype).removeprefix("torch."))
    return " ".join([*words, x.device.type])
