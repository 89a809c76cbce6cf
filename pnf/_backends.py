"""Report of the implementation that each op family uses on each device, and why no faster one runs."""

import importlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Backend:
    """The implementation of one op family on one kind of device.

    Attributes:
        family: the op family, such as ``"masking"``.
        device: ``"cpu"`` or ``"cuda"``.
        implementation: ``"cpp"``, ``"cuda"``, ``"triton"`` or ``"reference"``, pure PyTorch.
        reason: why nothing faster runs on this machine, and the remedy; empty if nothing is faster.
    """

    family: str
    device: str
    implementation: str
    reason: str


def backends() -> list[Backend]:
    """List the implementation of each op family on the CPU and on CUDA devices of this machine.

    Returns:
        One :class:`Backend` for each family and device. The call creates no CUDA context.

    Example:
        >>> import pnf
        >>> {backend.device for backend in pnf.backends() if backend.family == "masking"} == {"cpu", "cuda"}
        True
    """
    import pnf.ops  # noqa: F401 - registers every family
    from pnf.ops._library import IMPLEMENTATIONS

    return [
        Backend(family, device, kind if runs else "reference", _reason(device, kind, runs))
        for family, devices in IMPLEMENTATIONS.items()
        for device, (kind, runs) in devices.items()
    ]


def linear_by_library() -> bool:
    """Whether PyTorch's library multiplies the matrices of linear layers on this processor, and not pnf."""
    from pnf.ops._processor import LINEAR_BY_LIBRARY

    return LINEAR_BY_LIBRARY


def build() -> dict[str, str | bool]:
    """Describe the build of ``pnf._C``.

    Returns:
        ``version``, ``compiler``, ``cuda`` and, with CUDA, ``nvcc`` and ``architectures``; ``level`` is the instruction
        set of the C++ kernels on this machine.

    Raises:
        RuntimeError: the compiled module cannot be loaded.
    """
    from pnf.ops._library import extension

    module = extension()
    if isinstance(module, ImportError):
        raise RuntimeError(_unloadable(module))
    return {**module.build, "level": module.cpu.levels()[module.cpu.level()]}


def _reason(device: str, kind: str, runs: bool) -> str:
    import torch

    from pnf.ops._library import extension

    if device == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no CUDA device on this machine"
    if runs:
        return ""
    if kind == "triton":
        return "Triton is not installed: pip install 'pnf[gpu]'"
    module = extension()
    if isinstance(module, ImportError):
        return _unloadable(module)
    reason = left_out("cuda") or "reinstall it from source where nvcc is on PATH"
    return f"pnf was built without its CUDA C++ kernels: {reason}"


def left_out(part: str) -> str:
    """The reason why ``"extension"`` or ``"cuda"`` was left out of the build, with the remedy; empty if it was not."""
    try:
        reasons: dict[str, str] = importlib.import_module("pnf._build").LEFT_OUT
    except ImportError:  # the sources, and no build
        return ""
    return reasons[part]


def _unloadable(error: ImportError) -> str:
    from pnf.ops._library import UnsupportedProcessorError

    if isinstance(error, UnsupportedProcessorError):
        return str(error)
    sources = Path(__file__).parents[1]
    if (sources / "CMakeLists.txt").exists():
        remedy = f"this is the source of pnf in {sources}, not what was installed; start Python in another folder"
    elif reason := left_out("extension"):
        return f"pnf was built without its compiled kernels: {reason}"
    else:
        remedy = "reinstall pnf with a C++20 compiler at hand"
    return f"pnf._C cannot be loaded ({error}): {remedy}"
