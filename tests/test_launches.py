"""What a training step launches and compiles on a GPU, as the scripts of benchmarks count and time it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rows(script: str, preset: str, *options: str) -> list[list[str]]:
    """The cells of the last table that a script prints, without its head."""
    # Kernels of the interpreter have no specialisations.
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, BENCHMARKS / script, preset, *options]
    done = subprocess.run(command, env=compiled, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.rpartition("\n\n")[2].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.parametrize(
    ("preset", "launches", "kernels"),
    [
        ("mnist-dense", 981, 20),
        *(pytest.param(*known, marks=pytest.mark.slow) for known in (("cifar10", 8_769, 62), ("celeba64", 8_238, 101))),
    ],
)
def test_no_more_than_is_known(preset: str, launches: int, kernels: int) -> None:
    found = [int(cell.replace(",", "")) for cell in rows("launches.py", preset)[-1][1:]]
    assert found[0] <= launches
    assert found[1] <= kernels
    assert found[2] < 2 * kernels


def test_remembered_launches_are_quicker() -> None:
    *kernels, total = rows("launch_times.py", "mnist-dense")
    assert {"affine_coupling._forward", "standard_normal._forward"} <= {kernel[0] for kernel in kernels}
    assert float(total[-1]) < 0.9


@pytest.mark.slow
def test_programs_share_out_what_normalises() -> None:
    found = {kernel[0]: kernel for kernel in rows("launches.py", "cifar10", "--programs")}
    for kernel in ("_channels.moments", "batch_norm_relu._forward", "batch_norm_relu._sums"):
        median, most = (int(cell) for cell in found[f"cifar10, {kernel}"][3:5])
        assert median >= 100
        assert most >= 132
