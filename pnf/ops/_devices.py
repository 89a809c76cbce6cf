"""The GPU of a launch, and the test whether it can run the kernels."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]

# (kind of kernel, number of the GPU) -> the reason why it cannot run there; empty if it can
_REASONS: dict[tuple[str, int], str] = {}


class CannotRunError(Exception):
    """A GPU cannot run the kernels of a kind."""


def common_device(op: str, tensors: Sequence[Tensor]) -> int:
    """The number of the GPU of all tensors, or -1 for the CPU.

    A pointer to another device's memory would crash the process in a kernel.

    Raises:
        RuntimeError: the tensors are on several devices.
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


# Triton uses it too. It takes a twentieth of the time.
current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)
"""PyTorch's current stream on a GPU, as a CUDA handle."""


def why_not(kind: str, index: int) -> str:
    """The reason why a GPU cannot run the kernels of a kind, ``"cuda"`` or ``"triton"``; empty if it can.

    It is determined once, with a warning if there is one.
    """
    reason = _REASONS.get((kind, index))
    if reason is not None:
        return reason
    with torch.cuda.device(index):
        if torch.cuda.is_current_stream_capturing():
            return ""  # nothing can be loaded now, so the GPU is not tested
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
    """Raise unless a GPU can run the kernels of a kind. -1, the CPU, stands for Triton's interpreter.

    Raises:
        CannotRunError: the GPU cannot run them.
    """
    if index >= 0 and why_not(kind, index):
        raise CannotRunError


def or_reference(run: Run, reference: Run) -> Run:
    """Wrap a function so that its reference runs instead if the GPU cannot run its kernel."""

    def run_or_reference(*args: Any) -> Any:
        try:
            return run(*args)
        except CannotRunError:
            return reference(*args)

    return run_or_reference


OLDEST_TRITON = 3, 6


def _probe_cuda() -> str:
    reason: str = importlib.import_module("pnf._C").cuda.why_not()
    remedy = "reinstall pnf from source with PNF_CUDA_ARCHITECTURES=native and an nvcc no newer than the driver"
    return f"{reason}: {remedy}" if reason else ""


def _probe_triton() -> str:
    try:
        version: str = importlib.import_module("triton").__version__
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
            return f"Triton {version} is older than 3.6: install PyTorch 2.11 or newer, which comes with a newer one"
        importlib.import_module("pnf.kernels._common").probe(torch.empty(1, device="cuda"))
    except Exception as error:  # a missing or old compiler or driver can raise any error
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


_PROBES: dict[str, Callable[[], str]] = {"cuda": _probe_cuda, "triton": _probe_triton}
