"""A build leaves out what the machine has no tools for, with one warning, and keeps the reason."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
"""First the programs of the environment that runs the tests, which need not be active."""

CMAKE = shutil.which("cmake", path=PATH)
REAL_COMPILER = shutil.which(os.environ.get("CXX", "c++"))

OLD_COMPILER = f"""#!/bin/sh
for flag; do
  if [ "$flag" = -std=c++20 ]; then echo "error: unrecognized command-line option '-std=c++20'" >&2; exit 1; fi
done
exec {REAL_COMPILER} "$@"
"""
LISTING_NVCC = """#!/bin/sh
if [ "$1" = --list-gpu-arch ]; then printf 'compute_80\\ncompute_90\\n'; exit; fi
echo 'fatal error: unsupported GNU version! gcc versions later than 13 are not supported!' >&2
exit 1
"""


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


class Configured:
    """A run of CMake, without a build: its messages, each in one line, and what it left out."""

    def __init__(self, folder: Path, environment: dict[str, str], **definitions: str) -> None:
        definitions = {
            "SKBUILD_PROJECT_NAME": "pnf",
            "SKBUILD_PROJECT_VERSION": "0.1.0",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            **definitions,
        }
        options = [f"-D{name}={value}" for name, value in definitions.items()]
        command = [str(CMAKE), "-G", "Ninja", "--no-warn-unused-cli", *options, "-S", str(ROOT), "-B", str(folder)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=os.environ | {"PATH": PATH} | environment
        )
        self.failed = done.returncode != 0
        self.text = " ".join(done.stderr.split())
        self.warnings = self.text.count("CMake Warning")
        self.left_out = {} if self.failed else runpy.run_path(str(folder / "_build.py"))["LEFT_OUT"]


@pytest.mark.parametrize("option", ["PNF_EXTENSION", "PNF_CUDA"])
def test_without_a_compiler(tmp_path: Path, option: str) -> None:
    environment = {"CXX": str(shutil.which("false"))}
    found = Configured(tmp_path / "auto", environment)
    assert found.warnings == 1
    assert "pnf is built without its compiled kernels: no working C++ compiler was found. Install GCC" in found.text
    assert found.left_out["extension"].startswith("no working C++ compiler was found. Install GCC")
    found = Configured(tmp_path / "on", environment, **{option: "ON"})
    assert found.failed
    assert f"pnf: no working C++ compiler was found, and {option}=ON insists. Install GCC" in found.text


def test_an_old_compiler_is_named(tmp_path: Path) -> None:
    compiler = script(tmp_path / "old-c++", OLD_COMPILER)
    found = Configured(tmp_path / "build", {"CXX": compiler})
    assert found.warnings == 1
    assert found.left_out["extension"].startswith(f"{compiler} (")
    assert ") cannot compile the C++ kernels: error: unrecognized command-line option" in found.left_out["extension"]


@pytest.mark.parametrize(("nvcc", "reason"), [
    ("NOTFOUND", "no nvcc was found. Install the CUDA toolkit (12.0 or newer), put nvcc on PATH or set CUDACXX to it"),
    ("/nowhere/nvcc", "/nowhere/nvcc does not list its architectures"),
    (LISTING_NVCC, "cannot compile C++20 with its host compiler: fatal error: unsupported GNU version! gcc"),
], ids=["missing", "broken", "refusing"])  # fmt: skip
def test_without_a_working_nvcc(tmp_path: Path, nvcc: str, reason: str) -> None:
    if nvcc is LISTING_NVCC:
        nvcc = script(tmp_path / "nvcc", nvcc)
    found = Configured(tmp_path / "auto", {}, CMAKE_CUDA_COMPILER=nvcc)
    assert found.warnings == 1
    assert "pnf is built without its CUDA C++ kernels: " in found.text
    assert found.left_out["extension"] == ""
    assert reason in found.left_out["cuda"]
    found = Configured(tmp_path / "on", {}, CMAKE_CUDA_COMPILER=nvcc, PNF_CUDA="ON")
    assert found.failed
    assert "and PNF_CUDA=ON insists. " in found.text


def test_what_is_switched_off_is_no_reason_to_warn(tmp_path: Path) -> None:
    found = Configured(tmp_path / "extension", {}, PNF_EXTENSION="OFF")
    assert (found.warnings, found.left_out["extension"]) == (
        0,
        "it was built with PNF_EXTENSION=OFF; reinstall pnf without that",
    )
    found = Configured(tmp_path / "cuda", {}, PNF_CUDA="OFF")
    assert (found.warnings, found.left_out["extension"]) == (0, "")
    assert found.left_out["cuda"] == "it was built with PNF_CUDA=OFF; reinstall pnf without that"
    found = Configured(tmp_path / "both", {}, PNF_EXTENSION="OFF", PNF_CUDA="ON")
    assert "pnf: PNF_CUDA=ON needs the C++ kernels; remove PNF_EXTENSION=OFF." in found.text
    found = Configured(tmp_path / "neither", {}, PNF_CUDA="maybe")
    assert 'pnf: PNF_CUDA must be AUTO, ON or OFF, got "maybe"' in found.text


@pytest.mark.parametrize(("known", "chosen"), [
    ((75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121), "75;80-real;86-real;89-real;90-real;100-real;120"),
    ((50, 60, 70, 75, 80, 86, 87, 89, 90), "75;80-real;86-real;89-real;90"),  # CUDA 12.6
    ((90,), "90"),
    ((35, 50), ""),
], ids=["13.0", "12.6", "one", "none"])  # fmt: skip
def test_architectures_are_those_that_nvcc_knows(tmp_path: Path, known: tuple[int, ...], chosen: str) -> None:
    listed = "".join(f"compute_{architecture}\n" for architecture in known)
    program = tmp_path / "choose.cmake"
    program.write_text(
        f"include({ROOT}/cmake/architectures.cmake)\n"
        f'pnf_architectures("{listed}" found)\nfile(WRITE {tmp_path}/found "${{found}}")\n'
    )
    subprocess.run([str(CMAKE), "-P", str(program)], check=True)
    assert (tmp_path / "found").read_text() == chosen


def test_a_wheel_without_the_extension_runs_on_the_reference(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, "-C", "cmake.define.PNF_EXTENSION=OFF", str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("pnf-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = (
        "import torch, pnf\n"
        "print(pnf.RealNVP((3, 4, 4), hidden=4, blocks=1).log_prob(torch.rand(2, 3, 4, 4)).isfinite().all().item())\n"
        "backends = pnf.backends()\n"
        "print(*{b.implementation for b in backends if b.device == 'cpu'})\n"
        "print(*{b.reason for b in backends if b.device == 'cpu'})"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines() == [
        "True",
        "reference",
        "pnf was built without its compiled kernels: it was built with PNF_EXTENSION=OFF; reinstall pnf without that",
    ]
