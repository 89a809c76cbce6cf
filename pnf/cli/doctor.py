"""``pnf doctor``."""

import importlib.metadata
import math
import platform
import time
import warnings
from dataclasses import asdict

import torch
from rich.table import Table

import pnf
from pnf._backends import build, left_out, linear_by_library
from pnf.cli.common import JsonOption, console, print_json

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


def doctor_command(json: JsonOption = False) -> None:
    """Versions, devices, the compiled module, and what runs here and why not something faster.

    Example: pnf doctor
    """
    library = "PyTorch" if linear_by_library() else "pnf"
    found = {
        "pnf": pnf.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: _version(name) for name in _PACKAGES},
        "threads": str(torch.get_num_threads()),
        "GPU": _gpu(),
        "compiled module": _compiled(),
        "--precision bf16": _bf16(),
        "linear layers": f"products by {library}, the faster ones on this processor",
    }
    backends = pnf.backends()
    if json:
        print_json(found | {"ops": [asdict(row) for row in backends]})
        return
    table = Table("what", "found", title="pnf doctor", show_header=False)
    for row in found.items():
        table.add_row(*row)
    console.show(table)
    table = Table("ops", "device", "runs", "why not something faster", title="Implementations")
    families: dict[tuple[str, ...], list[str]] = {}
    for backend in backends:
        families.setdefault((backend.device, backend.implementation, backend.reason), []).append(backend.family)
    for alike, names in families.items():
        table.add_row(", ".join(names), *alike)
    console.show(table)


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


def _bf16() -> str:
    """How fast bfloat16 is on the first GPU, or on this CPU, measured for some milliseconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = 256 if device.type == "cuda" else 8
    least = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for _ in range(4):  # by turns, since a machine's speed drifts
        for dtype in least:
            x, weight = (
                torch.rand(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
                for shape in ((batch, 64, 16, 16), (64, 64, 3, 3))
            )
            leaves = x.requires_grad_(), weight.requires_grad_(), torch.zeros(64, dtype=dtype, device=device)
            float(x.detach().sum())  # waits for a GPU
            began = time.perf_counter()
            grads = torch.autograd.grad(pnf.ops.convolution(*leaves).sum(), leaves[:2])
            float(grads[1].sum())
            least[dtype] = min(least[dtype], time.perf_counter() - began)
    return (
        f"{least[torch.float32] / least[torch.bfloat16]:.1f} times as fast as 32, in a convolution with its gradients"
    )


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
