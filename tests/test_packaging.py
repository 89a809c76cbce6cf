"""The names of the installed packages, and the effects that an import must not have."""

import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import pnf
from pnf import backends
from pnf._backends import build

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_everything_is_installed_under_one_name() -> None:
    files = {str(path) for path in metadata.files("pnf") or [] if path.suffix != ".pyc"}
    names = {name for name in files if not name.startswith("..")}
    assert [Path(name).name for name in files - names] == ["pnf"], "more than the command lies elsewhere"
    assert len([name for name in names if re.fullmatch(r"pnf/_C[^/]*\.(so|pyd)", name)]) == 1
    assert {"pnf/__init__.py", "pnf/py.typed", "pnf/kernels/__init__.py", "pnf/ops/masking.py"} <= names
    assert "pnf/pretrained/fashion-mnist/model/model.safetensors" in names
    assert {name.partition("/")[0] for name in names} == {"pnf", f"pnf-{pnf.__version__}.dist-info"}
    sources = {f"pnf/{path.relative_to(ROOT / 'pnf')}" for path in (ROOT / "pnf").rglob("*.py")}
    sources |= {f"pnf/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.py")}
    sources.add("pnf/_build.py")  # written by CMake
    assert {name for name in names if name.endswith(".py")} == sources


def test_import_loads_neither_triton_nor_cuda() -> None:
    loaded = run(
        "import sys, pnf, pnf.ops, pnf.reference, torch\n"
        "print('triton' in sys.modules, 'pnf.kernels' in sys.modules, torch.cuda.is_initialized())"
    )
    assert loaded == "False False False"


def test_import_loads_no_cuda_library() -> None:
    import pnf._C

    assert b"libcudart.so" not in Path(pnf._C.__file__).read_bytes()


def test_kernels_refuse_a_foreign_name() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\ntry: import kernels\nexcept ImportError as e: print(e)"
    assert run(code) == 'the kernels of pnf are imported as "pnf.kernels" and under no other name, got "kernels"'
    assert run("import pnf.kernels as k; print(k.__name__)") == "pnf.kernels"


def test_build_tells_what_it_was_built_with() -> None:
    built = build()
    assert built["version"] == pnf.__version__
    assert re.match(r"\w+ \d+\.\d+", str(built["compiler"]))
    assert built["level"] in {"x86-64-v3", "x86-64-v4", "generic"}
    if built["cuda"]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", str(built["nvcc"]))
        assert re.fullmatch(r"75( \d+-real)+ \d+", str(built["architectures"]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one level")
def test_the_newest_level_of_the_processor_runs() -> None:
    # Some compilers' own libraries know no feature of any processor, and nothing but the speed would tell.
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    v4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= {*flags}
    assert build()["level"] == ("x86-64-v4" if v4 else "x86-64-v3")


def test_cuda_kernels_are_built_where_nvcc_is() -> None:
    import pnf._C

    assert build()["cuda"] or shutil.which("nvcc") is None, "nvcc is here, but pnf was built without it"
    kernels = {"mask_apply", "mask_pack", "mask_unpack", "mask_input", "mask_input_backward"}
    assert kernels <= set(dir(pnf._C.cpu))
    assert (kernels <= set(dir(pnf._C.cuda))) == build()["cuda"]
    assert (b".nv_fatbin" in Path(pnf._C.__file__).read_bytes()) == build()["cuda"]


def test_backends_tell_what_runs_and_why_nothing_faster() -> None:
    masking = {backend.device: backend for backend in backends() if backend.family == "masking"}
    assert masking["cpu"].implementation == "cpp"
    assert masking["cpu"].reason == ""
    assert masking["cuda"].implementation == ("cuda" if build()["cuda"] else "reference")


def test_without_the_extension_everything_runs_on_the_reference() -> None:
    code = (
        "import sys; sys.modules['pnf._C'] = None\n"
        "import torch, pnf, pnf.ops\n"
        "x = torch.ones(1, 2, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()\n"
        "pnf.ops.mask_apply(x, 'checkerboard', 0).sum().backward()\n"
        "print(x.grad.sum().item(), *{b.implementation for b in pnf.backends() if b.device == 'cpu'})\n"
        "print(next(b.reason for b in pnf.backends() if b.device == 'cpu'))"
    )
    figures, reason = run(code).splitlines()
    assert figures == "10.0 reference"
    assert reason.startswith("pnf._C cannot be loaded (")
    assert reason.endswith("): reinstall pnf with a C++20 compiler at hand")


def test_a_processor_without_avx2_runs_the_reference() -> None:
    code = (
        "import pnf._C; pnf._C.cpu.levels = lambda: []\n"
        "import torch, pnf, pnf.ops\n"
        "x = torch.ones(1, 2, 4, 4)\n"
        "print(pnf.ops.mask_apply(x, 'checkerboard', 0).sum().item())\n"
        "found = [b for b in pnf.backends() if b.device == 'cpu']\n"
        "print({b.implementation for b in found}, found[0].reason)"
    )
    reason = "pnf's compiled kernels need a processor with AVX2 and FMA, which this one lacks"
    assert run(code).splitlines() == ["16.0", "{'reference'} " + reason]


def test_reasons_of_the_build_are_told() -> None:
    code = (
        "import sys, types; sys.modules['pnf._C'] = None\n"
        "reasons = {'extension': 'no compiler. Install one', 'cuda': ''}\n"
        "sys.modules['pnf._build'] = types.SimpleNamespace(LEFT_OUT=reasons)\n"
        "import pnf; print(pnf.backends()[0].reason)\n"
        "from pnf.cli.doctor import doctor_command; doctor_command()"
    )
    reason, *doctor = run(code).splitlines()
    assert reason == "pnf was built without its compiled kernels: no compiler. Install one"
    assert "pnf was built without its compiled kernels" in " ".join(doctor)


def test_sources_that_hide_the_installed_package_are_named() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pnf; print(pnf.backends()[0].reason)"
    assert (
        run(code)
        .strip()
        .endswith(f"this is the source of pnf in {ROOT}, not what was installed; start Python in another folder")
    )


def test_without_triton_gpus_run_on_the_reference() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; torch.cuda.is_available = lambda: True\n"
        "import pnf\n"
        "found = {b.device: b for b in pnf.backends() if b.family == 'standard_normal'}\n"
        "print(found['cuda'].implementation, found['cuda'].reason)\n"
        "print(found['cpu'].implementation, found['cpu'].reason)"
    )
    assert run(code).splitlines() == ["reference Triton is not installed: pip install 'pnf[gpu]'", "cpp"]
