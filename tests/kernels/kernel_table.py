"""The table of all compiled Triton kernels: ``python tests/kernels/kernel_table.py > docs/kernels.md``."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton

FOLDER = Path(__file__).parent
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]

HEAD = f"""# What the Triton kernels compile to

Made by `python tests/kernels/kernel_table.py > docs/kernels.md` with Triton {triton.__version__}, which needs no GPU;
`tests/kernels` compiles again and compares. No kernel spills or uses local memory or atomics.

- registers: for {", ".join(TARGETS)}; of a thread
- shared: bytes of shared memory, on sm_90
- bits: of one access of a thread to the large tensors, in the order of the kernel's arguments
- moved: bytes that all kernels of a call move, over the least possible: its arguments and its results once each

The tensors have shape [16, 12, 32, 32].
"""


def run(script: str, interpret: bool) -> list[dict[str, Any]]:
    """What a script of this folder found, in a process of its own: Triton reads its environment when imported."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, FOLDER / script], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def compile_kernels() -> list[dict[str, Any]]:
    return run("compiling.py", interpret=False)


def trace_kernels() -> list[dict[str, Any]]:
    return run("tracing.py", interpret=True)


def table(compiled: Sequence[dict[str, Any]], traced: Sequence[dict[str, Any]]) -> str:
    moved = {(t["op"], t["mode"], t["layout"]): t["moved"] for t in traced if not t["huge"]}
    rows: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for kernel in compiled:
        if not kernel["huge"]:
            key = tuple(kernel[name] for name in ("op", "mode", "kernel", "dtype", "layout"))
            rows.setdefault(key, {})[kernel["target"]] = kernel
    lines = [["op", "kernel", "dtype", "layout", "registers", "shared", "bits", "moved"]]
    for (op, mode, name, dtype, layout), by_target in rows.items():
        nvidia = by_target["sm_90"]
        widths = ["/".join(map(str, bits)) for name, bits in nvidia["widths"].items() if name in nvidia["main"]]
        lines.append(
            [
                f"{op} {mode}".strip(),
                f"`{name}`",
                dtype,
                layout,
                ", ".join(str(by_target[target]["registers"]) for target in TARGETS),
                str(nvidia["shared"]),
                ", ".join(widths),
                f"{moved[op, mode, layout]:.3f}",
            ]
        )
    size = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, size, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in size])
    return "\n".join([HEAD, *(f"| {' | '.join(line)} |" for line in padded), ""])


if __name__ == "__main__":
    print(table(compile_kernels(), trace_kernels()), end="")
