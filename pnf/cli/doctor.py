"""``pnf doctor``."""

import importlib.metadata
import platform
import warnings

import torch
from rich.table import Table

import pnf
from pnf._backends import build, left_out
from pnf.cli.common import console

_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "lightning",
    "pydantic",
    "typer",
    "rich",
    "matplotlib",
    "pillow",
)


def doctor_command() -> None:
    """Versions, devices, the compiled module, and what runs here and why not something faster.

    Example: [bold]pnf doctor[/bold]
    """
    table = Table("what", "found", title="pnf doctor", show_header=False)
    table.add_row("pnf", pnf.__version__)
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _PACKAGES:
        table.add_row(name, _version(name))
    table.add_row("threads", str(torch.get_num_threads()))
    table.add_row("GPU", _gpu())
    table.add_row("compiled module", _compiled())
    console.print(table)
    table = Table("ops", "device", "runs", "why not something faster", title="Implementations")
    for row in pnf.backends():
        table.add_row(row.family, row.device, row.implementation, row.reason)
    console.print(table)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _compiled() -> str:
    try:
        found = build()
    except RuntimeError as error:
        return str(error)
    if found["cuda"]:
        cuda = f"CUDA C++ kernels by nvcc {found['nvcc']} for {found['architectures']}"
    else:
        cuda = f"no CUDA C++ kernels: {left_out('cuda')}"
    return f"{found['compiler']}, C++ kernels for {found['level']}, {cuda}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "none" + ("" if built else "; this torch is built without CUDA")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return "\n".join(f"{torch.cuda.get_device_name(device)}: {_launched(device)}" for device in devices)


def _launched(device: torch.device) -> str:
    """What became of a kernel of each kind, in words."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            x = torch.rand(1, 2, 4, 4, device=device)
            pairs = [(m.mask_apply(x, "checkerboard", 0), m.squeeze(x)) for m in (pnf.ops, pnf.reference)]
            right = all(a.equal(b) for a, b in zip(*pairs, strict=True))
        except RuntimeError as error:
            return f"a launch failed: {error}"
    if told:
        return "\n".join(str(warning.message) for warning in told)
    return "kernels run and are right" if right else "kernels run and are WRONG"
