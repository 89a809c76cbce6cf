"""What a training step launches and compiles on a GPU, as the scripts of benchmarks count and time it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def rows(script: str, preset: str) -> list[list[str]]:
    """The cells of the table that a script prints, without its head."""
    # Kernels of the interpreter have no specialisations.
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, BENCHMARKS / script, preset]
    done = subprocess.run(command, env=compiled, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]


@pytest.mark.parametrize(
    ("preset", "launches", "kernels"),
    [("mnist-dense", 993, 20), pytest.param("cifar10", 7_708, 60, marks=pytest.mark.slow)],
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
