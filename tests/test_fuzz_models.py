"""A short run of ``python tests/fuzz_models.py --cases 100000``, which gives random flows extreme images."""

import subprocess
import sys
from pathlib import Path


def test_random_flows_are_finite() -> None:
    command = [sys.executable, Path(__file__).with_name("fuzz_models.py"), "--cases", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
