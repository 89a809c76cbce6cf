"""A run's processor: its name, its memory, and the arithmetic that likelihoods need of it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from pnf.ops._processor import NAME


def processor(device: torch.device) -> str:
    """The name of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return NAME


def free_memory(device: torch.device) -> int:
    """The free bytes of the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def reset_peak_memory(device: torch.device) -> None:
    """Let :func:`most_memory` measure from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # If Linux does not allow it, the peak includes the time before.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def most_memory(device: torch.device) -> int:
    """The peak of bytes since the reset: of tensors on a GPU, else of the process, with the data and PyTorch.

    macOS does not tell a peak since a reset. There it is what the process holds now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    if kilobytes:
        return 1024 * kilobytes[0]
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def has_fp32_precision() -> bool:
    """Whether PyTorch has its second interface for the precision of float32, as from 2.9 on."""
    return hasattr(torch.backends.cudnn, "conv")


def exact_arithmetic() -> None:
    """Use full float32 and repeatable convolutions, since likelihoods must not depend on a processor's shortcuts."""
    backends: Any = torch.backends  # PyTorch's stubs lack some of it
    backends.cudnn.allow_tf32 = False
    backends.cuda.matmul.allow_tf32 = False
    # Under the second interface the first one may mean "as elsewhere". To set it last leaves both readable.
    if has_fp32_precision():
        cuda = backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul
        for shortcut in (*cuda, backends.mkldnn.conv, backends.mkldnn.matmul):
            shortcut.fp32_precision = "ieee"
    backends.cudnn.deterministic = True
    backends.cudnn.benchmark = False


@contextmanager
def tensor_float_32(enabled: bool = True) -> Iterator[None]:
    """Let a GPU round what it multiplies in convolutions and matrix products to TF32, with 10 bits after the point.

    In a step of training these are the networks of the couplings, and the products of Muon, which need not be exact.
    Arithmetic is exact again in the end.
    """
    if enabled:
        backends: Any = torch.backends
        if has_fp32_precision():
            backends.cudnn.conv.fp32_precision = backends.cuda.matmul.fp32_precision = "tf32"
        else:
            backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        if enabled:
            exact_arithmetic()
