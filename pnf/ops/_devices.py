"""The GPU that a kernel is launched on, and whether it can run the kernels at all."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]

# (kind of kernel, number of the GPU) -> why it does not run there; empty if it does
_REASONS: dict[tuple[str, int], str] = {}


class CannotRunError(Exception):
    """The kernels of a kind do not run on a GPU."""


def common_device(op: str, tensors: Sequence[Tensor]) -> int:
    """The number of the GPU that all tensors are on, or -1 for the CPU.

    A kernel that is handed a pointer to another device's memory ends the process.

    Raises:
        RuntimeError: they are on several devices.
    """
    index = tensors[0].get_device()
    for x in tensors:
        if x.get_device() != index:
            first, second = tensors[0].device, x.device
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{first} and {second}! (when checking the tensors of {op})"
            )
    return index


def _current_stream(index: int) -> int:
    stream: int = torch.cuda.current_stream(index).cuda_stream
    return stream


# What Triton takes too: a twentieth of the time.
current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)
"""The stream on which PyTorch works on a GPU, as the number that CUDA takes."""


def why_not(kind: str, index: int) -> str:
    """Why the kernels of a kind, "cuda" or "triton", do not run on the GPU of that number; empty if they do.

    It is found out once. If they do not, a warning says so.
    """
    reason = _REASONS.get((kind, index))
    if reason is not None:
        return reason
    with torch.cuda.device(index):
        if torch.cuda.is_current_stream_capturing():
            return ""  # nothing can be loaded now, which says nothing of the GPU
        reason = _REASONS[kind, index] = _PROBES[kind]()
        if reason:
            name = torch.cuda.get_device_name(index)
            warnings.warn(
                f"the {kind} kernels of pnf do not run on cuda:{index} ({name}), which takes the slower reference in "
                f"their place: {reason}; pnf doctor tells more",
                RuntimeWarning,
                stacklevel=2,
            )
    return reason


def check_runs(kind: str, index: int) -> None:
    """Raise unless the kernels of a kind run on the GPU of that number; -1, the CPU, stands for Triton's interpreter.

    Raises:
        CannotRunError: they do not.
    """
    if index >= 0 and why_not(kind, index):
        raise CannotRunError


def or_reference(run: Run, reference: Run) -> Run:
    """The function, or its reference where the GPU cannot run its kernel."""

    def run_or_reference(*args: Any) -> Any:
        try:
            return run(*args)
        except CannotRunError:
            return reference(*args)

    return run_or_reference


def _probe_cuda() -> str:
    reason: str = importlib.import_module("pnf._C").cuda.why_not()
    remedy = "reinstall pnf from source with PNF_CUDA_ARCHITECTURES=native and an nvcc no newer than the driver"
    return f"{reason}: {remedy}" if reason else ""


def _probe_triton() -> str:
    try:
        importlib.import_module("pnf.kernels._common").probe(torch.empty(1, device="cuda"))
    except Exception as error:  # a compiler or a driver that is missing or too old raises errors of its own
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


_PROBES: dict[str, Callable[[], str]] = {"cuda": _probe_cuda, "triton": _probe_triton}
