"""A short run of ``python tests/fuzz_models.py --cases 100000``, which gives random flows extreme images."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("cases", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_random_flows_are_finite(cases: int) -> None:
    command = [sys.executable, Path(__file__).with_name("fuzz_models.py"), "--cases", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
