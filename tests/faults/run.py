"""Disturb ``pnf train`` in every way that it promises to survive, and print a table of the outcomes.

    python tests/faults/run.py --kills 100 --trials 10 --seed 0

Each trial is a run with one fault. The command must end with the results of an undisturbed run, to the bit, or with one
line that names the remedy. In that case, once the fault is mended, the run must resume from its checkpoints and reach
the same bits. Anything else is a failure. docs/reliability.md holds a table.
"""

from __future__ import annotations

import argparse
import gzip
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from pnf_process import Pnf, results, train_args

from pnf.data import load

STEPS, HALFWAY = 40, 21

SAME = "went on to the same bits"
RESUMED = "resumed to the same bits"
TOLD = "stopped with one line; mended, it went on to the same bits"

AT_STEP = """
from pnf.training.batches import Batches
batch = Batches.__call__
def disturbed(self, step):
    if step == {step}:
        {action}
    return batch(self, step)
Batches.__call__ = disturbed
"""
"""Does something during the making of a step's batch."""

AT_WRITE = """
import os, signal
fsync, calls = os.fsync, iter(range(10**9))
def disturbed(file):
    if next(calls) == {number}:
        if not os.path.isdir(f"/proc/self/fd/{{file}}"):
            os.ftruncate(file, int({share} * os.fstat(file).st_size))
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)
os.fsync = disturbed
"""
"""Dies by SIGKILL inside the writing of a file, with a share of it on the disk, or inside its renaming."""

LIMIT_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""

ROOT_AS_OTHERS = """
import ctypes, os
if os.getuid() == 0:
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, data)
    data[0] &= ~(1 << 1)
    libc.capset(header, data)
"""
"""Drops CAP_DAC_OVERRIDE, so that permissions hold for root too."""


class FaultError(Exception):
    """The command broke a promise."""


class Skipped(Exception):  # noqa: N818 - it is no error
    """The fault is impossible on this machine."""


@dataclass
class Lab:
    """The settings and the results that all trials share.

    Attributes:
        root: the folder for all trials.
        pnf: starts the command.
        chance: the source of randomness.
        duration: the seconds of an undisturbed run.
        settings: the settings of the run.
        wanted: the results of an undisturbed run.
        halfway: the folder of a run that was stopped at a checkpoint.
        trials: the number of trials so far.
        others: labs with other data.
    """

    root: Path
    pnf: Pnf
    chance: random.Random
    settings: dict[str, object] = field(default_factory=dict)
    duration: float = 0.0
    wanted: dict[str, object] = field(default_factory=dict)
    halfway: Path = Path()
    trials: int = 0
    others: dict[str, Lab] = field(default_factory=dict)

    def prepare(self) -> None:
        started = time.perf_counter()
        code, output = self.call(self.start(self.root / "undisturbed"))
        expect(code == 0, output)
        self.duration = time.perf_counter() - started
        self.wanted = results(self.root / "undisturbed")
        self.halfway = self.root / "halfway"
        stop = AT_STEP.format(step=HALFWAY - 1, action="__import__('signal').raise_signal(15)")
        code, output = self.call(self.start(self.halfway), before=stop)
        expect(code == 143, output)

    def call(self, args: list[str], *, before: str = "") -> tuple[int, str]:
        self.pnf.start(*args, before=before)
        return self.pnf.wait(), self.pnf.output()

    def start(self, folder: Path) -> list[str]:
        """The arguments of a user: for a new run, or to resume the run in the folder."""
        if (folder / "run.json").exists():
            return resume(folder)
        return train_args(folder, steps=STEPS, **self.settings)

    def folder(self) -> Path:
        """Make a new folder."""
        self.trials += 1
        return self.root / f"trial{self.trials}"

    def stopped(self) -> Path:
        """Make a copy of the run that was stopped halfway."""
        return shutil.copytree(self.halfway, self.folder())

    def finish(self, folder: Path) -> None:
        """Start or resume the command without a fault. It must end with the wanted bits."""
        code, output = self.call(self.start(folder))
        expect(code == 0, f"the mended run ended with {code}: {output}")
        self.compare(folder)
        shutil.rmtree(folder)

    def compare(self, folder: Path) -> None:
        expect(results(folder) == self.wanted, "the results differ from those of the undisturbed run")

    def judge(self, folder: Path, code: int, output: str, mend: Callable[[], object] = lambda: None) -> str:
        """Judge the outcome of a run under a fault."""
        if code == 0:
            self.compare(folder)
            mend()
            shutil.rmtree(folder)
            return SAME
        told(code, output)
        mend()
        self.finish(folder)
        return TOLD


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise FaultError(what)


def resume(folder: Path) -> list[str]:
    return ["train", "--resume", str(folder), "--device", "cpu"]


def told(code: int, output: str) -> str:
    """The command's only line of error."""
    lines = [line for line in output.splitlines() if line.startswith("pnf: ")]
    noise = any(word in output for word in ("Traceback", "Exception", "Warning"))
    expect(code in (1, 130, 143) and len(lines) == 1 and not noise, f"ended with {code}: {output}")
    return lines[0]


def sound(folder: Path) -> list[int]:
    """The steps of the checkpoints, each of which must be whole."""
    return [torch.load(path, weights_only=True)["step"] for path in sorted(folder.glob("checkpoints/*.ckpt"))]


def killed(lab: Lab) -> str:
    """SIGKILL at a random moment"""
    folder = lab.folder()
    lab.pnf.start(*lab.start(folder))
    time.sleep(lab.chance.uniform(0, lab.duration))
    lab.pnf.signal(signal.SIGKILL)
    code, output = lab.pnf.wait(), lab.pnf.output()
    expect(code in (0, -signal.SIGKILL), output)
    sound(folder)
    lab.finish(folder)
    return SAME if code == 0 else RESUMED


def killed_in_a_write(lab: Lab) -> str:
    """SIGKILL inside the writing of a file"""
    folder = lab.folder()
    # Settings, images, three checkpoints every five steps, and a flow. Each is one write and one renaming.
    number = lab.chance.randrange(2 * (2 + 3 * STEPS // 5 + 2))
    code, output = lab.call(lab.start(folder), before=AT_WRITE.format(number=number, share=lab.chance.random()))
    expect(code == -signal.SIGKILL, output)
    sound(folder)
    lab.finish(folder)
    return RESUMED


def signalled(number: signal.Signals) -> Callable[[Lab], str]:
    def signalled(lab: Lab) -> str:
        folder = lab.folder()
        lab.pnf.start(*lab.start(folder))
        time.sleep(lab.chance.uniform(0, lab.duration))
        lab.pnf.signal(number)
        code, output = lab.pnf.wait(), lab.pnf.output()
        # Before the first step there is nothing to save.
        expect(code in (0, 128 + number, -number), output)
        if code > 0:
            told(code, output)
        sound(folder)
        lab.finish(folder)
        return SAME if code == 0 else RESUMED

    signalled.__doc__ = f"{number.name} at a random moment"
    return signalled


def full_disk(lab: Lab) -> str:
    """A full disk (a small tmpfs)"""
    folder = lab.folder()
    whole = sum(path.stat().st_size for path in (lab.root / "undisturbed").rglob("*") if path.is_file())
    with tmpfs(folder, lab.chance.randrange(4096, whole)) as grow:
        code, output = lab.call(lab.start(folder / "run"))
        sound(folder / "run")
        outcome = lab.judge(folder / "run", code, output, grow)
    folder.rmdir()
    return outcome


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    """Mount a file system of ``size`` bytes, and yield a function that enlarges it."""

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "pnf", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Skipped("needs the right to mount a tmpfs")

    if shutil.which("mount") is None:
        raise Skipped("needs the command mount")
    folder.mkdir()
    mount(f"size={size}")
    try:
        yield lambda: mount("remount,size=64m")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def file_limit(lab: Lab) -> str:
    """A limit on the size of files (RLIMIT_FSIZE)"""
    folder = lab.folder()
    largest = max(path.stat().st_size for path in (lab.root / "undisturbed").rglob("*") if path.is_file())
    code, output = lab.call(lab.start(folder), before=LIMIT_FILES.format(size=lab.chance.randrange(1, largest)))
    sound(folder)
    return lab.judge(folder, code, output)


def no_permission(lab: Lab) -> str:
    """Write permission taken away, before or in the middle of the run"""
    folder = lab.stopped()
    where = folder / lab.chance.choice(["", "checkpoints", "logs", "tensorboard"])
    before = ROOT_AS_OTHERS
    if lab.chance.random() < 0.5:
        where.chmod(0o555)
    else:
        action = f"__import__('os').chmod({str(where)!r}, 0o555)"
        step = lab.chance.randrange(HALFWAY, STEPS)
        before += AT_STEP.format(step=step, action=action)
    code, output = lab.call(resume(folder), before=before)
    expect(min(sound(folder)) >= HALFWAY, "a checkpoint was lost")
    return lab.judge(folder, code, output, lambda: where.chmod(0o755))


def nan_batch(lab: Lab) -> str:
    """A batch of NaN"""
    folder = lab.folder()
    step = lab.chance.randrange(STEPS)
    before = AT_STEP.format(step=step, action="return batch(self, step) * float('nan')")
    code, output = lab.call(lab.start(folder), before=before)
    expect(code == 1, output)
    expect(all(step >= at for at in sound(folder)), "a checkpoint of a run after NaN was kept")
    return lab.judge(folder, code, output)


def damaged(which: str, name: str) -> Callable[[Lab], str]:
    def damaged(lab: Lab) -> str:
        folder = lab.stopped()
        path = lab.chance.choice(sorted(path for path in folder.glob(which) if path.is_file()))
        whole = path.read_bytes()
        path.write_bytes(damage(whole, lab.chance))
        code, output = lab.call(resume(folder))
        if "remove it to train its stage anew" in output:
            return lab.judge(folder, code, output, path.unlink)
        return lab.judge(folder, code, output, lambda: path.write_bytes(whole))

    damaged.__doc__ = f"{name}: cut short, a bit flipped, emptied or zeroed"
    return damaged


def damage(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    kind = chance.choice(["cut", "flip", "flip", "flip", "empty", "zero"])
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    return b"" if kind == "empty" else bytes(len(content))


def damaged_data(layout: str) -> Callable[[Lab], str]:
    def damaged_data(lab: Lab) -> str:
        if layout not in lab.others:
            root = lab.root / layout
            root.mkdir()
            settings = {"data": write_data(root / "data", layout), "limit": 150}
            lab.others[layout] = Lab(root, lab.pnf, lab.chance, settings)
            lab.others[layout].prepare()
        own = lab.others[layout]
        path = lab.chance.choice(sorted(path for path in (own.root / "data").rglob("*") if path.is_file()))
        whole = path.read_bytes()
        folder = own.stopped()
        try:
            path.write_bytes(damage(whole, lab.chance))
            code, output = own.call(resume(folder))
            return own.judge(folder, code, output, lambda: path.write_bytes(whole))
        finally:
            path.write_bytes(whole)

    damaged_data.__doc__ = f"Data, {layout}: cut short, a bit flipped, emptied or zeroed"
    return damaged_data


def write_data(folder: Path, layout: str) -> Path:
    """Write the first 150 bundled images at 8x8 in another layout, and return the path for ``--data``."""
    pixels = load("fashion-mini", "train", 8, limit=150).pixels.numpy()
    folder.mkdir()
    if layout == "npz":
        np.savez_compressed(folder / "images.npz", train=pixels)
        return folder / "images.npz"
    if layout == "folder of PNG":
        (folder / "train").mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image[0]).save(folder / "train" / f"{i:03}.png")
    else:
        content = struct.pack(">BBBB3I", 0, 0, 8, 3, *pixels[:, 0].shape) + pixels.tobytes()
        suffix = ".gz" if layout == "idx.gz" else ""
        (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def faults() -> list[Callable[[Lab], str]]:
    return [
        killed,
        killed_in_a_write,
        signalled(signal.SIGTERM),
        signalled(signal.SIGINT),
        full_disk,
        file_limit,
        no_permission,
        nan_batch,
        damaged("checkpoints/*.ckpt", "Checkpoints"),
        damaged("*.json", "Settings and the check of the images"),
        damaged("logs/*/*.csv", "Logs"),
        damaged("tensorboard/*", "TensorBoard's logs"),
        *(damaged_data(layout) for layout in ("npz", "idx", "idx.gz", "folder of PNG")),
    ]


def run(lab: Lab, kills: int, trials: int) -> tuple[list[str], list[str]]:
    """The rows of the table, and the broken promises."""
    rows, failures = ["| fault | trials | outcome |", "| --- | --- | --- |"], []
    for fault in faults():
        outcomes: Counter[str] = Counter()
        name = fault.__doc__
        for _ in range(kills if fault in (killed, killed_in_a_write) else trials):
            try:
                outcomes[fault(lab)] += 1
            except Skipped as reason:
                outcomes[f"not tried: {reason}"] += 1
                break
            except FaultError as failure:
                outcomes["FAILED"] += 1
                failures.append(f"{name}: {failure}")
        told = "; ".join(f"{outcome}: {count}" for outcome, count in outcomes.items())
        rows.append(f"| {name} | {outcomes.total()} | {told} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return rows, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--trials", type=int, default=20, help="of every other fault (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, Pnf(Path(root)) as pnf:
        Path(root).chmod(0o755)
        lab = Lab(Path(root), pnf, random.Random(args.seed))
        lab.prepare()
        rows, failures = run(lab, args.kills, args.trials)
    print(*rows, *failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
