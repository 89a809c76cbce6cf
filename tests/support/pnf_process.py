"""The command ``pnf`` as a process for tests to disturb, and the bits of its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_SETTINGS = {
    "size": 8,
    "limit": 200,
    "levels": 1,
    "hidden": 8,
    "blocks": 1,
    "num-couplings": 2,
    "batch-size": 16,
    "warmup": 5,
    "validation": 20,
    "validate-every": 10,
    "checkpoint-every": 5,
    "log-every": 5,
}

# Imports everything once and forks. It skips Python's shutdown, so that a kill hits the run.
_SERVER = """
import atexit, json, os, signal, sys
import pnf.cli.train, torch.utils.tensorboard
from pnf.cli import main
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["pnf", *request["args"]]
        # Under nohup or in the background these would be ignored.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        exec(request["before"])
        try:
            main()
        except SystemExit as stop:
            atexit._run_exitfuncs()
            if sys.stdout is not None:
                sys.stdout.flush()
            os._exit(stop.code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Pnf:
    """Starts the command ``pnf``, one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Send the output of the processes to a file in the folder."""
        self._output = folder / "output.txt"
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | one_thread,
        )
        self._pid = 0
        self.start("--help")
        if self.wait() != 0:
            raise RuntimeError(self.output())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()

    def start(self, *args: str, before: str = "") -> None:
        """Start the command, after some Python code in its process."""
        assert self._server.stdin is not None
        request = {"args": args, "before": before, "output": str(self._output)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        self._pid = int(self._answer())

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def wait(self) -> int:
        """Wait for the process, and return its exit status, negative for a signal."""
        return int(self._answer())

    def output(self) -> str:
        """The output of the last process, on standard output and standard error."""
        return self._output.read_text(encoding="utf-8")

    def _answer(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts pnf has died")
        return line


def train_args(folder: Path, *, steps: int, **settings: object) -> list[str]:
    """The arguments of a tiny run."""
    options = _SETTINGS | {key.replace("_", "-"): value for key, value in settings.items()} | {"steps": steps}
    return ["train", "demo", "--device", "cpu", "--out", str(folder), *(f"--{k}={v}" for k, v in options.items())]


def results(folder: Path) -> dict[str, object]:
    """The contents of the model and of the checkpoints, to the bit.

    Files of checkpoints with equal contents may differ, since pickle writes an object that is shared in memory once.
    """
    found: dict[str, object] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("model/*")}
    for path in folder.glob("checkpoints/*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["settings"]  # the intervals of saving and logging are no results
        found[str(path.relative_to(folder))] = _plain(checkpoint)
    return found


def _plain(value: object) -> object:
    """Replace every tensor in a value by its type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
