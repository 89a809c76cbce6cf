"""A short run of ``python tests/fuzz_ops.py --cases 20000``, which calls the ops at random."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("cases", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_random_calls_are_accurate(cases: int) -> None:
    command = [sys.executable, Path(__file__).with_name("fuzz_ops.py"), "--cases", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
