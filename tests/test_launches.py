"""What a training step launches and compiles on a GPU, as benchmarks/launches.py counts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "launches.py"


@pytest.mark.parametrize(
    ("preset", "launches", "kernels"),
    [("mnist-dense", 993, 20), pytest.param("cifar10", 7_708, 60, marks=pytest.mark.slow)],
)
def test_no_more_than_is_known(preset: str, launches: int, kernels: int) -> None:
    # Kernels of the interpreter have no specialisations.
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, SCRIPT, preset], env=compiled, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [int(cell.replace(",", "")) for cell in done.stdout.splitlines()[-1].split("|")[2:-1]]
    assert found[0] <= launches
    assert found[1] <= kernels
    assert found[2] < 2 * kernels
