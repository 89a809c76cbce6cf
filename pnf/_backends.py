"""Report of the implementation that each op family uses on each device, and why no faster one runs."""

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
    return "pnf was built without CUDA: put nvcc on PATH and reinstall it from source with PNF_CUDA=ON"


def _unloadable(error: ImportError) -> str:
    sources = Path(__file__).parents[1]
    if (sources / "CMakeLists.txt").exists():
        remedy = f"this is the source of pnf in {sources}, not what was installed; start Python in another folder"
    else:
        remedy = "reinstall pnf with a C++20 compiler at hand"
    return f"pnf._C cannot be loaded ({error}): {remedy}"
