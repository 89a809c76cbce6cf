"""Compile Triton kernels for GPUs that this machine need not have, and print JSON: ``compiling.py first|rest``.

The first part is one case of each op in bfloat16 for one GPU; the rest are the other cases and GPUs, float32 and huge
tensors.

The launchers are called with tensors that have no memory. The driver is a fake, and a launch stops after the
compilation. ``TRITON_INTERPRET`` must not be set.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from cases import CASES, FIRST, HUGE, ORDINARY, Case, Meta, Shape
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import pnf.ops  # noqa: F401 - registers every family
from pnf.ops._library import KERNELS

TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
]
DTYPES = [torch.float32, torch.bfloat16]

# The least size of a main tensor, over the largest. Smaller ones are log-determinants, parameters and partial sums.
MAIN = 1 / 64

compile_kernel = JITFunction.run


class FakeDriver:
    """A machine with one device of each target."""

    def __init__(self) -> None:
        self.device = 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.device]

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0


fake = FakeDriver()


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory, which hold spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told.stdout)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def amd_resources(assembly: str) -> dict[str, int]:
    names = "vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"
    found = {name: int(re.findall(rf"\.{name}:\s*(\d+)", assembly)[-1]) for name in names}
    return {"registers": found.pop("vgpr_count"), "spilled": sum(found.values())}


def widths(ptx: str, names: list[str]) -> dict[str, list[int]]:
    """The bits of each access to global memory, by the argument with its address, for the kernel's arguments."""
    sources: dict[str, set[str]] = defaultdict(set)
    accesses = []
    for statement in re.split(r"[;\n]", ptx):
        instruction = re.match(r"\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+(.*)", statement)
        if not instruction:
            continue
        name, operands = instruction.groups()
        operation = name.partition(".")[0]
        if ".global" in name and operation in ("ld", "st", "cp"):
            asynchronous = operation == "cp"
            address = re.findall(r"\[\s*(%\w+)", operands)[-1]
            if asynchronous:
                bits = 8 * int(re.findall(r"\],\s*(\w+)", operands)[-1], 0)
            else:
                lanes, size = re.search(r"(?:\.v(\d))?\.[bfus](\d+)$", name).groups()
                bits = int(lanes or 1) * int(size)
            accesses.append((address, bits))
        elif operation == "ld" and ".param" in name:
            register, index = re.match(r"(%\w+), \[\w+_param_(\d+)", operands).groups()
            if int(index) < len(names):
                sources[register] |= {names[int(index)]}
        elif operation != "ld":
            first, *others = re.findall(r"%\w+", operands) or [""]
            sources[first] |= set(others)

    def roots(register: str, seen: set[str]) -> set[str]:
        if register in names:
            return {register}
        if register in seen:
            return set()
        seen.add(register)
        return set().union(*(roots(source, seen) for source in sources[register]))

    # A kernel's constants decide which arguments it takes. An argument that it takes and never accesses is suspect.
    found: dict[str, list[int]] = {name: [] for name in set().union(*sources.values()) & {*names}}
    for address, bits in accesses:
        for name in roots(address, set()):
            found[name].append(bits)
    return found


def describe(module: str, kernel: Any, tensors: dict[str, Tensor], target: GPUTarget) -> dict[str, Any]:
    pointers = {name for name, kind in kernel.src.signature.items() if str(kind).startswith("*")}
    told: dict[str, Any] = {"kernel": f"{module.rpartition('.')[2]}.{kernel.name}", "shared": kernel.metadata.shared}
    if target.backend == "hip":
        return told | amd_resources(kernel.asm["amdgcn"])
    arguments = [name for name, kind in kernel.src.signature.items() if kind != "constexpr"]
    taken = {name: bits for name, bits in widths(kernel.asm["ptx"], arguments).items() if name in pointers}
    largest = max(x.nbytes for x in tensors.values())
    told["widths"] = {name: sorted(set(taken[name])) for name in arguments if name in taken}
    told["main"] = [name for name in told["widths"] if tensors[name].nbytes >= MAIN * largest]
    told["atomics"] = len(re.findall(r"\b(?:atom|red)\.", kernel.asm["ptx"]))
    told["approximate"] = len(re.findall(r"\.approx\b|\bdiv\.full\b", kernel.asm["ptx"]))
    return told | resources(kernel.asm["cubin"])


def compile_case(case: Case, meta: Meta, shape: tuple[int, ...], target: GPUTarget) -> list[dict[str, Any]]:
    """Compile the kernels that one call launches, and return their properties."""
    found: list[dict[str, Any]] = []

    def launch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:  # noqa: ARG001
        kernel = compile_kernel(self, *args, grid=grid, warmup=True, **options)
        bound = dict(zip(self.arg_names, args, strict=False)) | options
        tensors = {name: x for name, x in bound.items() if isinstance(x, Tensor)}
        found.append(describe(self.module, kernel, tensors, target))

    JITFunction.run = launch
    KERNELS[case.op]["triton"](*case.arguments(meta, shape))
    layout = "channels_last" if meta.channels_last else "contiguous"
    common = {
        "op": case.op,
        "mode": case.mode,
        "dtype": str(meta.dtype).removeprefix("torch."),
        "layout": layout,
        "huge": shape != ORDINARY,
        "target": f"sm_{target.arch}" if target.backend == "cuda" else target.arch,
        "narrow": case.narrow,
    }
    return [common | kernel for kernel in found]


class Call(NamedTuple):
    """A call that compiles the kernels of a case."""

    case: Case
    meta: Meta
    shape: Shape
    target: GPUTarget

    def part(self) -> str:
        one = self.case in FIRST and self.meta.dtype is torch.bfloat16
        return "first" if one and self.shape == ORDINARY and self.target == TARGETS[1] else "rest"

    def compile(self) -> list[dict[str, Any]]:
        driver.set_active(fake)
        fake.device = TARGETS.index(self.target)
        return compile_case(*self)


def calls() -> list[Call]:
    """All calls. That with one huge example is for one GPU only, since its indices are the same on all.

    With many examples the arguments have as many bits as for ordinary tensors.
    """
    found = []
    for case in CASES:
        for channels_last in (False, True) if case.channels_last else (False,):
            metas = [Meta(dtype, channels_last) for dtype in DTYPES]
            found += [Call(case, meta, ORDINARY, target) for meta in metas for target in TARGETS]
            found.append(Call(case, Meta(torch.bfloat16, channels_last), HUGE[-1], TARGETS[1]))
    return found


def compile_call(index: int) -> list[dict[str, Any]]:
    return calls()[index].compile()


if __name__ == "__main__":
    indices = [index for index, call in enumerate(calls()) if call.part() == sys.argv[1]]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        print(json.dumps([*itertools.chain(*pool.map(compile_call, indices))]))
