"""Registration of ops with PyTorch, the same for every family.

The dispatcher is the whole choice of an implementation: the reference is registered for every device, and a compiled
kernel for a device replaces it there. So there is no ``if x.is_cuda`` anywhere, and an op works without its kernels.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIBRARY = torch.library.Library("pnf", "DEF")

# family -> device -> implementation, as pnf.backends() tells it
IMPLEMENTATIONS: dict[str, dict[str, str]] = {}


class Kernel(NamedTuple):
    """A compiled implementation of an op: its kind, "cpp", "cuda" or "triton", and a function of the op's arguments."""

    kind: str
    run: Callable[..., Any]


@functools.cache
def extension() -> ModuleType | ImportError:
    """The compiled module ``pnf._C``, or why it cannot be loaded."""
    try:
        return importlib.import_module("pnf._C")
    except ImportError as error:
        return error


def cpu_module() -> ModuleType | None:
    """The C++ kernels, if they can be loaded."""
    module = extension()
    return None if isinstance(module, ImportError) else module.cpu


def cuda_module() -> ModuleType | None:
    """The CUDA C++ kernels, if they were built. Nothing here touches a GPU."""
    module = extension()
    return None if isinstance(module, ImportError) or not module.build["cuda"] else module.cuda


def launch_cpu(
    kernel: Callable[..., None],
    x: Tensor,  # noqa: ARG001
    *args: int,
) -> None:
    """Run a C++ kernel on as many threads as the caller lets PyTorch use."""
    kernel(*args, torch.get_num_threads())


def launch_cuda(kernel: Callable[..., None], x: Tensor, *args: int) -> None:
    """Run a CUDA C++ kernel on the device of x and the caller's stream."""
    with torch.cuda.device(x.device):
        kernel(*args, torch.cuda.current_stream().cuda_stream)


def register(
    family: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    cpu: Kernel | None = None,
    cuda: Kernel | None = None,
) -> Callable[..., Any]:
    """Define an op and everything PyTorch needs to run, differentiate, trace and compile it.

    Args:
        family: the stem of the op's files.
        schema: ``"name(Tensor x, ...) -> Tensor"``.
        reference: runs on every device that has no kernel; returns what ``fake`` describes, strides included.
        fake: the result's shapes, strides and dtypes, without its values.
        backward, setup_context: as :func:`torch.library.register_autograd` wants them; a backward calls public ops.
        cpu, cuda: the compiled implementations that can run here.

    Returns:
        The op, to be called with positional arguments.
    """
    name = schema.partition("(")[0]
    # The strides of a result follow those of the arguments, so that a compiler must not change the latter.
    LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    for device, kernel in (("cpu", cpu), ("cuda", cuda)):
        if kernel is not None:
            LIBRARY.impl(name, kernel.run, device.upper())
        IMPLEMENTATIONS.setdefault(family, {}).setdefault(device, kernel.kind if kernel else "reference")
    torch.library.register_fake(f"pnf::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"pnf::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.pnf, name).default
    return op
