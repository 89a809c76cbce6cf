"""A short run of ``python tests/faults/run.py --kills 100``, which disturbs training at random."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_fault_loses_anything() -> None:
    command = [sys.executable, Path(__file__).with_name("run.py"), "--kills", "5", "--trials", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
