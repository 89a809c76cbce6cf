"""A short run of ``python tests/load.py --steps 200000``, which looks for leaks."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_files_and_threads_do_not_grow() -> None:
    command = [sys.executable, Path(__file__).with_name("load.py"), "--steps", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
