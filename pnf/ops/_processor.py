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


def _vendor() -> str:
    """The vendor as the processor itself names it, or an empty text."""
    if _DESCRIBED:
        return _DESCRIBED.get("vendor_id", "")
    # Other systems name the family: "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", "i386".
    return "GenuineIntel" if platform.processor().startswith(("Intel", "i386")) else ""


def _widened() -> frozenset[torch.dtype]:
    """The dtypes of half precision without instructions. Other systems than Linux do not tell: none."""
    flags = set((_DESCRIBED.get("flags") or _DESCRIBED.get("Features", "")).split())
    return frozenset(dtype for dtype, names in _FLAGS.items() if flags and not flags & names)


LINEAR_BY_LIBRARY = _vendor() == "GenuineIntel"
"""Whether linear layers are left to PyTorch's oneMKL.

oneMKL picks its code by vendor. A training step of the dense model takes 0.88 of the reference's time with it and 1.04
without on an Intel Xeon with AVX-512. On an AMD EPYC pnf's products are 1.7 times as fast as oneMKL's.
"""

WIDENED = _widened()
"""The dtypes of half precision in which convolutions and linear layers are computed in float32, by pnf's kernels.

Without instructions for a dtype, PyTorch's convolutions take ten times as long as in float32 (bfloat16 on an AMD EPYC
with AVX2).
"""
