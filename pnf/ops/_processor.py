"""What the processor can do, and how it names itself: choices between implementations depend on it."""

import platform
from pathlib import Path

import torch

_FLAGS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""The names under which Linux lists instructions that multiply in each dtype, on x86 and on ARM."""


def _described() -> dict[str, str]:
    """How Linux describes the first processor, by name; empty on other systems."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return {}
    with info.open() as file:
        lines = file.read(8192).partition("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


_DESCRIBED = _described()


NAME = _DESCRIBED.get("model name") or platform.processor() or platform.machine()
"""The processor's name, as for people."""


def _vendor() -> str:
    """The vendor as the processor itself names it, or an empty text."""
    if _DESCRIBED:
        return _DESCRIBED.get("vendor_id", "")
    # Other systems name the family: "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", "i386".
    return "GenuineIntel" if platform.processor().startswith(("Intel", "i386")) else ""


_INSTRUCTIONS = frozenset((_DESCRIBED.get("flags") or _DESCRIBED.get("Features", "")).split())


def _linear_by_library(vendor: str, instructions: frozenset[str]) -> bool:
    return vendor == "GenuineIntel" or (vendor == "AuthenticAMD" and "avx512f" not in instructions)


def _widened(instructions: frozenset[str]) -> frozenset[torch.dtype]:
    """The dtypes of half precision without instructions. Other systems than Linux do not tell: none."""
    return frozenset(dtype for dtype, names in _FLAGS.items() if instructions and not instructions & names)


LINEAR_BY_LIBRARY = _linear_by_library(_vendor(), _INSTRUCTIONS)
"""Whether linear layers are left to PyTorch's oneMKL, which picks its code by vendor.

| processor | training step of the dense model, against the reference: oneMKL | pnf |
| --- | --- | --- |
| Intel Xeon, AVX-512 | 0.88 | 1.04 |
| AMD EPYC, AVX2 | 0.92 | 1.02 |
| AMD EPYC, AVX-512 | | 0.70 |

On the last one pnf's products are 1.7 times as fast as oneMKL's. ``python benchmarks/products.py`` compares them, on
one thread and on two.
"""

WIDENED = _widened(_INSTRUCTIONS)
"""The dtypes of half precision in which convolutions and linear layers are computed in float32, by pnf's kernels.

Without instructions for a dtype, PyTorch's convolutions take ten times as long as in float32 (bfloat16 on an AMD EPYC
with AVX2).
"""
