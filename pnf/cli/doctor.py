"""``pnf doctor``."""

import importlib.metadata
import platform

import torch
from rich.table import Table

import pnf
from pnf._backends import build
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
    cuda = f"CUDA kernels by nvcc {found['nvcc']} for {found['architectures']}" if found["cuda"] else "no CUDA kernels"
    return f"{found['compiler']}, C++ kernels for {found['level']}, {cuda}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return "none" + ("" if built else "; this torch is built without CUDA")
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
