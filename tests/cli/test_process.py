"""The command as a separate process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_MAIN = "from pnf.cli import main; main()"


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )


def test_a_command() -> None:
    result = run(_MAIN, "doctor")
    assert result.returncode == 0, result.stderr
    assert "Implementations" in result.stdout
    assert result.stderr == ""


def test_a_mistake() -> None:
    result = run(_MAIN, "train", "dmeo")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("pnf: there is no preset 'dmeo'")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("module", "command"), [("typer", "doctor"), ("lightning", "train")])
def test_a_missing_extra(module: str, command: str) -> None:
    result = run(f"import sys; sys.modules[{module!r}] = None; {_MAIN}", command)
    assert result.returncode == 1
    assert result.stderr == f"pnf: the command line needs {module}; install it with: pip install 'pnf[train]'\n"


@pytest.mark.parametrize("command", ["sample", "upscale", "evaluate", "project", "anomaly"])
def test_only_training_loads_what_takes_longest(command: str) -> None:
    result = run(f"import sys, pnf.cli.{command}; print({{'lightning', 'torchmetrics', 'scipy'}} & {{*sys.modules}})")
    assert (result.returncode, result.stdout, result.stderr) == (0, "set()\n", "")


def test_the_package_waits_for_pytorch_until_it_is_used() -> None:
    result = run(
        "import sys, pnf; assert 'torch' not in sys.modules\n"
        "assert pnf.ProgressiveFlow is pnf.fast.ProgressiveFlow and pnf.RealNVP is pnf.fast.RealNVP\n"
        "assert pnf.reference.RealNVP is not pnf.RealNVP and pnf.backends()\n"
        "try: pnf.absent\n"
        "except AttributeError as error: print(error)"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "module 'pnf' has no attribute 'absent'\n"
