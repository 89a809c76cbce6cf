"""Kills ``pnf train`` at random moments, resumes it, and compares the results with those of an undisturbed run.

    python tests/training/kill_and_resume.py --kills 20 --seed 0

The moments are uniform over the duration of the undisturbed run, which writes a checkpoint every five steps. A kill is
SIGKILL. After each the same run is resumed; when it has finished, its model and checkpoints must have the same bits,
and the next run begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
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

# Imports everything once and forks, and leaves out how Python takes itself down: what is killed is the run.
_SERVER = """
import atexit, json, os, sys
import pnf.cli.app, torch.utils.tensorboard
from pnf.cli import main
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["pnf", *request["args"]]
        try:
            main()
        except SystemExit as stop:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(stop.code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Pnf:
    """Starts the command ``pnf``, one process at a time."""

    def __init__(self, folder: Path) -> None:
        """What the processes write goes to a file in the folder."""
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

    def start(self, *args: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"args": args, "output": str(self._output)}) + "\n")
        self._server.stdin.flush()
        self._pid = int(self._answer())

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def wait(self) -> int:
        """The exit status, negative for a signal."""
        return int(self._answer())

    def output(self) -> str:
        """What the last process wrote, to standard output and standard error."""
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
    """What is in the model and in the checkpoints, to the bit.

    The files of checkpoints may differ where their contents do not: pickle writes what is one object in memory once.
    """
    found: dict[str, object] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("model/*")}
    for path in folder.glob("checkpoints/*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["settings"]  # how often to save and to log is no result
        found[str(path.relative_to(folder))] = _plain(checkpoint)
    return found


def _plain(value: object) -> object:
    """The value with every tensor as its type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Kill:
    """One kill: how long after the start, what it left, and how the run came to its end."""

    run: int
    moment: float
    steps: str
    leftover: bool
    outcome: str


@dataclass
class Report:
    """All kills, and what went wrong."""

    duration: float
    kills: list[Kill] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    runs: int = 0

    def text(self) -> str:
        lines = [
            f"undisturbed run: {self.duration:.2f} s",
            f"{'kill':>4}  {'run':>3}  {'moment':>7}  {'of it':>5}  {'step of each stage':<24}  outcome",
        ]
        for i, kill in enumerate(self.kills, 1):
            share = 100 * kill.moment / self.duration
            outcome = kill.outcome + (", inside the writing of a checkpoint" if kill.leftover else "")
            lines.append(f"{i:>4}  {kill.run:>3}  {kill.moment:>5.2f} s  {share:>3.0f} %  {kill.steps:<24}  {outcome}")
        verdict = "; ".join(self.failures) or f"{self.runs} runs finished with the bits of the undisturbed run"
        return "\n".join([*lines, f"{'FAILED' if self.failures else 'PASSED'}: {len(self.kills)} kills; {verdict}"])


def kill_and_resume(pnf: Pnf, folder: Path, *, kills: int, seed: int, steps: int = 60) -> Report:
    """Kill runs in a folder at moments that belong to the seed, as often as told, and finish each."""
    moments = random.Random(seed)
    started = time.perf_counter()
    pnf.start(*train_args(folder / "undisturbed", steps=steps))
    assert pnf.wait() == 0, pnf.output()
    report = Report(time.perf_counter() - started)
    wanted = results(folder / "undisturbed")
    while len(report.kills) < kills and not report.failures:
        report.runs += 1
        _finish_one(pnf, folder / f"run{report.runs}", steps, moments, kills, report)
        if not report.failures and results(folder / f"run{report.runs}") != wanted:
            report.failures.append(f"run {report.runs} differs from the undisturbed run")
    return report


def _finish_one(pnf: Pnf, folder: Path, steps: int, moments: random.Random, kills: int, report: Report) -> None:
    """Start or resume one run until it has finished, killing it while kills are left."""
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        claimed = (folder / "run.json").exists()
        moment = moments.uniform(0, report.duration) if len(report.kills) < kills else None
        args = ["train", "--resume", str(folder), "--device", "cpu"] if claimed else train_args(folder, steps=steps)
        pnf.start(*args)
        if moment is not None:
            time.sleep(moment)
            pnf.signal(signal.SIGKILL)
        code = pnf.wait()
        if code == -signal.SIGKILL and moment is not None:
            report.kills.append(_inspect(folder, report.runs, moment))
    if code != 0:
        report.failures.append(f"run {report.runs} ended with status {code}: {pnf.output()}")


def _inspect(folder: Path, run: int, moment: float) -> Kill:
    """What a kill left; a checkpoint that is not whole raises."""
    checkpoints = sorted(folder.glob("checkpoints/*.ckpt"))
    steps = [f"{path.stem} {torch.load(path, weights_only=True)['step']}" for path in checkpoints]
    leftover = any(folder.glob("checkpoints/.*"))
    if (folder / "model/model.safetensors").exists():
        outcome = "killed after the last step"
    elif checkpoints:
        outcome = "resumed"
    elif (folder / "run.json").exists():
        outcome = "resumed, from the start"
    else:
        outcome = "started again"
    return Kill(run, moment, ", ".join(steps) or "none saved", leftover, outcome)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--steps", type=int, default=60, help="of each run (default: 60)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Pnf(Path(folder)) as pnf:
        report = kill_and_resume(pnf, Path(folder), kills=args.kills, seed=args.seed, steps=args.steps)
    print(report.text())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(_main())
