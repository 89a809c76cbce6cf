"""The table of all compiled Triton kernels: ``python tests/kernels/kernel_table.py > tests/kernels/kernels.md``."""

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
SHOWN = "sm_90"
COLUMNS = ["op", "kernel", "dtype", "layout", *TARGETS, "shared", "bits", "moved"]
NAMES = 4
"""The columns that name a row."""

HEAD = f"""# What the Triton kernels compile to

Made by `python tests/kernels/kernel_table.py > tests/kernels/kernels.md` with Triton {triton.__version__}, which needs
no GPU; the tests beside it compile again and compare. No kernel spills or uses atomics.

- {", ".join(TARGETS)}: registers of a thread
- shared: bytes of shared memory, on {SHOWN}
- bits: of one access of a thread to the large tensors, in the order of the kernel's arguments, on {SHOWN}
- moved: bytes that all kernels of a call move, over the least possible: its arguments and its results once each

The tensors have shape [16, 12, 32, 32].
"""

Row = tuple[str, ...]
Cells = dict[Row, dict[str, str]]
"""The cells of each row by their columns."""


def run(script: str, part: str, interpret: bool) -> list[dict[str, Any]]:
    """Run a script of this folder in a new process, since Triton reads its environment at import."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, FOLDER / script, part], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def compile_kernels(part: str) -> list[dict[str, Any]]:
    return run("compiling.py", part, interpret=False)


def trace_kernels(part: str) -> list[dict[str, Any]]:
    return run("tracing.py", part, interpret=True)


def cells(compiled: Sequence[dict[str, Any]], traced: Sequence[dict[str, Any]]) -> Cells:
    moved = {(t["op"], t["mode"], t["layout"]): f"{t['moved']:.3f}" for t in traced if t["ordinary"]}
    found: Cells = {}
    for kernel in compiled:
        if kernel["huge"]:
            continue
        op, mode, layout = (kernel[name] for name in ("op", "mode", "layout"))
        row = found.setdefault((f"{op} {mode}".strip(), f"`{kernel['kernel']}`", kernel["dtype"], layout), {})
        row[kernel["target"]] = str(kernel["registers"])
        if kernel["target"] == SHOWN:
            widths = ["/".join(map(str, bits)) for name, bits in kernel["widths"].items() if name in kernel["main"]]
            row |= {"shared": str(kernel["shared"]), "bits": ", ".join(widths)}
        if (op, mode, layout) in moved:
            row["moved"] = moved[op, mode, layout]
    return found


def table(found: Cells) -> str:
    lines = [
        COLUMNS,
        *([*row, *(values[column] for column in COLUMNS[NAMES:])] for row, values in sorted(found.items())),
    ]
    size = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, size, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in size])
    return "\n".join([HEAD, *(f"| {' | '.join(line)} |" for line in padded), ""])


def read(text: str) -> Cells:
    """Invert ``table``."""
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line] for line in lines]
    return {(*row[:NAMES],): dict(zip(COLUMNS[NAMES:], row[NAMES:], strict=True)) for row in rows}


if __name__ == "__main__":
    compiled, traced = ([*run("first"), *run("rest")] for run in (compile_kernels, trace_kernels))
    print(table(cells(compiled, traced)), end="")
