"""What Python takes to launch each Triton kernel of a training step: ``python benchmarks/launch_times.py [PRESET]``.

It needs no GPU. The launches are those of the preset, each of its kernels' first. The driver is a fake that does
nothing, so that what is timed is the work before it: by Triton alone, and with the launches that pnf remembers. They
are timed by turns, in the time of their thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import launches
import triton.compiler
from report import markdown
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

ROUNDS, CALLS = 15, 200


class Nothing(CompiledKernel):
    """A kernel that does nothing."""

    def __init__(self, src: Any, **_: Any) -> None:
        self.src, self.name, self.metadata, self.packed_metadata = src, src.fn.__name__, None, ()
        self.module, self.function, self._run = None, object(), lambda *_: None

    def _init_handles(self) -> None:
        """Load nothing, so that nothing is unloaded either."""


def collect(preset: str) -> dict[str, tuple[Any, ...]]:
    """The first launch of each kernel: the kernel, its arguments, grid and options."""
    found: dict[str, tuple[Any, ...]] = {}
    count = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        name = f"{self.module.removeprefix('pnf.kernels.')}.{self.fn.__name__}"
        found.setdefault(name, (self, args, grid, options))
        count(self, *args, grid=grid, warmup=warmup, **options)

    with patch.object(JITFunction, "run", run):
        launches.measure(preset, 64)
    return found


def microseconds(*functions: Callable[[], Any]) -> list[float]:
    """The median time of a call of each function."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, found in zip(functions, times, strict=True):
            start = time.thread_time()
            for _ in range(CALLS):
                function()
            found.append((time.thread_time() - start) / CALLS * 1e6)
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="cifar10", choices=launches.PRESETS)
    preset = parser.parse_args().preset
    run = JITFunction.run
    launches.pretend()
    found = collect(preset)
    JITFunction.run = run
    from pnf.kernels._launch import cached_launch

    rows, totals = [], [0.0, 0.0]
    with patch.object(triton.compiler, "compile", Nothing):
        for name, (kernel, args, grid, options) in sorted(found.items()):
            remembering = cached_launch(kernel)
            remembering[grid](*args, **options)
            times = microseconds(
                lambda: kernel[grid](*args, **options),  # noqa: B023
                lambda: remembering[grid](*args, **options),  # noqa: B023
            )
            totals = [total + t for total, t in zip(totals, times, strict=True)]
            rows.append([name, str(len(args)), *(f"{t:.1f}" for t in times), f"{times[1] / times[0]:.2f}"])
    rows.append(["all", "", *(f"{t:.1f}" for t in totals), f"{totals[1] / totals[0]:.2f}"])
    print(markdown(["kernel", "arguments", "Triton alone, us", "remembered, us", "ratio"], rows, left=1))


if __name__ == "__main__":
    main()
