"""Training and evaluation on a system that is not POSIX, as pnf sees it on Windows: pure Python, on the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# What only POSIX has, and what may be missing there. Other libraries know the system they run on. Linux's own files do
# not exist.
_HIDE = """
import os, pathlib, signal, sys
import filelock, lightning.fabric, psutil, torch
for name in ("fcntl", "grp", "pwd", "resource", "termios", "triton", "pnf._C"):
    sys.modules[name] = None
del signal.SIGHUP, os.fchmod
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path, **options: not str(path).startswith("/proc/") and exists(path, **options)
"""


def elsewhere(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", f"{_HIDE}from pnf.cli import main; main()", *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def test_doctor_says_what_is_missing() -> None:
    result = elsewhere("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    assert "pnf._C cannot be loaded" in result.stdout


def test_a_run_from_its_training_to_its_samples(tmp_path: Path, tiny: Callable[..., list[str]]) -> None:
    run, samples = tmp_path / "run", tmp_path / "samples.png"
    for command in (
        tiny(run),
        ["evaluate", run],
        ["sample", run, "--out", samples],
    ):
        result = elsewhere(*command)
        assert result.returncode == 0, result.stderr
    assert samples.exists()


def test_a_folder_is_locked_by_one_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from pnf.experiments.budget import in_training\n"
        "from pnf.training import RunError\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "with in_training(folder):\n"
        "    try:\n"
        "        with in_training(folder): print('both')\n"
        "    except RunError as error: print(error)\n"
        "with in_training(folder): print('again')\n"
    )
    result = subprocess.run([sys.executable, "-c", _HIDE + code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        f"{tmp_path} is being trained by another process: name other rows with --row",
        "again",
    ]
