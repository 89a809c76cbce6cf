"""The layout of the tree and the direction of its imports, as in CONTRIBUTING.md."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Families that PyTorch's libraries compute on GPUs.
LIBRARY_ON_GPUS = {"convolution", "dense_network", "residual_network"}
PNF = ROOT / "pnf"


def families() -> list[str]:
    return sorted(path.stem for path in (PNF / "ops").glob("[!_]*.py"))


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")


def imports(path: Path) -> set[str]:
    """The absolute names of all imports in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def foreign(path: Path, *allowed: str) -> set[str]:
    """The imports of a file outside the standard library and the allowed packages."""
    return {
        name
        for name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(name == package or name.startswith(f"{package}.") for package in allowed)
    }


@pytest.mark.parametrize("path", sorted((PNF / "flows").rglob("*.py")), ids=lambda path: path.stem)
def test_flows_import_no_op(path: Path) -> None:
    assert not foreign(path, "torch", "safetensors", "pnf.flows", "pnf.files", "pnf.hub", "pnf.pretrained")


def test_files_import_nothing() -> None:
    assert not foreign(PNF / "files.py")
    assert foreign(PNF / "hub.py") == {"pnf", "pnf.files.json_bytes", "pnf.files.printable", "pnf.files.read_json"}


@pytest.mark.parametrize("path", modules(PNF / "reference"), ids=lambda path: path.stem)
def test_reference_ops_import_torch_and_one_another_only(path: Path) -> None:
    assert not foreign(path, "torch", "pnf.reference")


@pytest.mark.parametrize("path", sorted((PNF / "ops").rglob("*.py")), ids=lambda path: path.stem)
def test_ops_import_the_reference_and_the_kernels(path: Path) -> None:
    assert not foreign(path, "torch", "pnf.ops", "pnf.reference", "pnf.kernels", "pnf._C")


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.stem)
def test_kernels_know_nothing_of_pnf(path: Path) -> None:
    assert not foreign(path, "torch", "triton", "pnf.kernels")


@pytest.mark.parametrize("path", sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()), ids=str)
def test_native_sources_know_nothing_of_torch(path: Path) -> None:
    included = [line for line in path.read_text().splitlines() if line.lstrip().startswith("#include")]
    assert not [line for line in included if any(name in line for name in ("torch/", "ATen/", "c10/"))]
    at_the_edge = path.parent.name == "bindings" or path.stem == "bindings"
    assert at_the_edge or not [line for line in included if "pybind11" in line or "Python.h" in line]


@pytest.mark.parametrize("family", families())
def test_a_family_has_one_stem_everywhere(family: str) -> None:
    for path in (
        PNF / "reference" / f"{family}.py",
        ROOT / "csrc" / "cpu" / f"{family}.cpp",
        ROOT / "csrc" / "bindings" / f"{family}.cpp",
        ROOT / "tests" / "ops" / f"test_{family}.py",
        ROOT / "tests" / "reference" / f"test_{family}.py",
        ROOT / "benchmarks" / f"test_{family}.py",
    ):
        assert path.is_file(), path.relative_to(ROOT)
    if family in LIBRARY_ON_GPUS:
        return
    on_a_gpu = [ROOT / "csrc" / "cuda" / f"{family}.cu", ROOT / "kernels" / f"{family}.py"]
    assert any(path.is_file() for path in on_a_gpu), f"{family} has neither a CUDA nor a Triton kernel"


@pytest.mark.parametrize("folder", ["csrc/cpu", "csrc/cuda", "csrc/bindings", "kernels"])
def test_every_kernel_belongs_to_a_family(folder: str) -> None:
    sources = (path for path in (ROOT / folder).glob("[!_]*") if path.suffix in {".cpp", ".cu", ".py"})
    assert {path.stem for path in sources} <= {*families(), "device", "isa", "parallel"}


BELOW = {
    "bridges": ("fast", "ops", "flows"),
    "data": ("files",),
    "figures": ("files",),
    "training": ("fast", "ops", "flows", "data", "files", "cuda_graphs", "_signals"),
    "evaluation": ("training", "fast", "flows", "data", "figures", "files"),
    "experiments": ("evaluation", "training", "flows", "data", "figures", "files"),
    "app": ("evaluation", "training", "flows", "data", "figures"),
    "cli": (
        "app",
        "experiments",
        "evaluation",
        "training",
        "flows",
        "data",
        "figures",
        "files",
        "hub",
        "pretrained",
        "_backends",
        "_signals",
    ),
}
"""The packages that each package may import."""


@pytest.mark.parametrize("wing", BELOW)
def test_imports_run_downhill(wing: str) -> None:
    for path in (PNF / wing).rglob("*.py"):
        own = {name.split(".")[1] for name in imports(path) if name.startswith("pnf.")}
        assert own <= {wing, *BELOW[wing]}, path


def test_fast_binds_the_flows_to_the_ops() -> None:
    for path in (PNF / "fast").glob("*.py"):
        assert not foreign(path, "torch", "pnf.flows", "pnf.ops", "pnf.fast")
