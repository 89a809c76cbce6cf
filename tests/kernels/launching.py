"""Launch every Triton kernel twice on a machine without a GPU, and print JSON about the second time: ``launching.py``.

Nothing is compiled: a kernel that Triton would compile is only noted. The driver is a fake, and so is a launch.
``TRITON_INTERPRET`` must not be set.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton.compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TARGETS = [GPUTarget("cuda", 90, 32), GPUTarget("cuda", 80, 32)]


class Launched(NamedTuple):
    """What was launched."""

    kernel: "Noted"
    grid: tuple[int, ...]
    stream: int
    arguments: tuple[Any, ...]


class Noted(CompiledKernel):
    """A kernel that would be compiled, from its source, types, constants and options."""

    def __init__(self, src: Any, options: dict[str, Any]) -> None:
        self.src, self.name = src, src.fn.__name__
        self.full_name = f"{src.fn.module}.{self.name}"
        self.what = str(src.signature), str(src.constants), str(src.attrs), str(options)
        self.metadata, self.packed_metadata = SimpleNamespace(), ()
        self.module, self.function, self._run = None, object(), self.note

    def _init_handles(self) -> None:
        """Load nothing, so that nothing is unloaded either."""

    def note(self, x: int, y: int, z: int, stream: int, *others: Any) -> None:
        enter, arguments = others[3], others[5:]
        if enter is not None:
            enter(others[2])
        machine.launches.append(Launched(self, (x, y, z), stream, arguments))


class Machine:
    """The driver of a machine with two GPUs, and what was launched and given to Triton."""

    def __init__(self) -> None:
        self.device, self.launches, self.asked = 0, [], 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.device]

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 100 + device


machine = Machine()


@contextmanager
def noting() -> Iterator[Machine]:
    """Launches of kernels are noted."""
    run = JITFunction.run

    def ask(self: Any, *args: Any, **options: Any) -> Any:
        machine.asked += 1
        return run(self, *args, **options)

    def note(src: Any, target: Any, options: Any, **_: Any) -> Noted:  # noqa: ARG001
        return Noted(src, options)

    machine.__init__()
    driver.set_active(machine)
    try:
        with patch.object(JITFunction, "run", ask), patch.object(triton.compiler, "compile", note):
            yield machine
    finally:
        driver._active = None


def launch_twice() -> dict[str, list[str]]:
    """The calls that launch anything else the second time, or ask Triton again; and the kernels without a call."""
    from cases import CASES, ORDINARY, UNEVEN, Meta

    from pnf.kernels._launch import CachedLaunch
    from pnf.ops._library import KERNELS

    wrong, kernels = [], set()
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            for last in (False, True) if case.channels_last else (False,):
                for shape in (ORDINARY, UNEVEN):
                    first, _ = launched(KERNELS[case.op]["triton"], case.arguments(Meta(dtype, last), shape))
                    again, more = launched(KERNELS[case.op]["triton"], case.arguments(Meta(dtype, last), shape))
                    if more or first != again:
                        wrong.append(f"{case.op} {case.mode} {dtype} {shape}")
                    kernels |= {kernel for kernel, *_ in first}
    remembering = {
        kernel.kernel
        for name, module in sys.modules.items()
        if name.startswith("pnf.kernels.")
        for kernel in vars(module).values()
        if isinstance(kernel, CachedLaunch)
    }
    never = {f"{kernel.module}.{kernel.fn.__name__}" for kernel in remembering} - kernels
    return {"wrong": wrong, "never launched": sorted(never)}


def launched(op: Any, arguments: Any) -> tuple[list[tuple[Any, ...]], int]:
    """What a call launches, and how often Triton was asked."""
    machine.launches.clear()
    machine.asked = 0
    op(*arguments)
    found = []
    for kernel, grid, stream, given in machine.launches:
        told = [str(x.shape) if isinstance(x, torch.Tensor) else str(x) for x in given]
        found.append((kernel.full_name, kernel.what, grid, stream, told))
    return found, machine.asked


if __name__ == "__main__":
    import pnf.ops  # noqa: F401 - registers every family

    with noting():
        print(json.dumps(launch_twice()))
