"""What runs here: which implementation each op family has on each device, and why not a faster one."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Backend:
    """The implementation of one op family on one kind of device.

    Attributes:
        family: the op family, such as ``"masking"``.
        device: ``"cpu"`` or ``"cuda"``.
        implementation: ``"cpp"``, ``"cuda"``, ``"triton"`` or ``"reference"``, pure PyTorch.
        reason: why nothing faster runs on this machine and what to do about it; empty if nothing is faster.
    """

    family: str
    device: str
    implementation: str
    reason: str


def backends() -> list[Backend]:
    """Tell, for each op family, what runs on the CPU and on CUDA devices here.

    Returns:
        One :class:`Backend` for each family and device. No CUDA context is made for it.
    """
    import pnf.ops  # noqa: F401 - registers every family
    from pnf.ops._library import IMPLEMENTATIONS

    return [
        Backend(family, device, implementation, _reason(device, implementation))
        for family, devices in IMPLEMENTATIONS.items()
        for device, implementation in devices.items()
    ]


def build() -> dict[str, str | bool]:
    """What ``pnf._C`` was built with: ``version``, ``compiler``, ``cuda`` and, with it, ``nvcc``, ``architectures``.

    Raises:
        RuntimeError: the compiled module cannot be loaded.
    """
    from pnf.ops._library import extension

    module = extension()
    if isinstance(module, ImportError):
        raise RuntimeError(_unloadable(module))
    return dict(module.build)


def _reason(device: str, implementation: str) -> str:
    from pnf.ops._library import extension

    module = extension()
    if device == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no CUDA device on this machine"
    if implementation != "reference":
        return ""
    if isinstance(module, ImportError):
        return _unloadable(module)
    if device == "cuda" and not module.build["cuda"]:
        return "pnf was built without CUDA: put nvcc on PATH and reinstall it from source with PNF_CUDA=ON"
    return "this family has no compiled kernel for the device"


def _unloadable(error: ImportError) -> str:
    return f"pnf._C cannot be loaded ({error}): reinstall pnf with a C++20 compiler at hand"
