"""A long run of a tiny model: ``python tests/load.py --steps 200000``.

It counts resident memory, open files and threads during the training. After the first tenth, in which caches fill,
memory must grow by less than 1 MiB in 10,000 steps, and files and threads not at all. Shorter runs cannot show that.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnf.data import load
from pnf.training import preset_config, train
from pnf.training.batches import Batches

SETTINGS = {
    "size": 4,
    "levels": 1,
    "hidden": 4,
    "blocks": 1,
    "num_couplings": 1,
    "batch_size": 4,
    "validation": 20,
    "validate_every": 500,
    "checkpoint_every": 500,
}
SAMPLES = 200
MOST_GROWTH = 2**20


def resident() -> int:
    """The resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """The files that stay open in this process. TensorBoard's thread opens its file briefly at each write."""
    counts = []
    for _ in range(5):
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
        time.sleep(1e-3)
    return min(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    counted: list[tuple[int, int, int, int]] = []
    batch = Batches.__call__

    def count(self: Batches, step: int) -> Tensor:
        if step % max(1, steps // SAMPLES) == 0:
            counted.append((step, resident(), open_files(), threading.active_count()))
        return batch(self, step)

    Batches.__call__ = count  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        train(
            preset_config("demo", steps=steps, **SETTINGS),
            load("fashion-mini", "train", 4, limit=200),
            Path(folder) / "run",
            accelerator="cpu",
        )
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        written = sum(path.stat().st_size for path in files)
    settled = np.array([row for row in counted if row[0] >= steps / 10], dtype=np.float64)
    slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0] * 10_000
    held, threads = (sorted({int(n) for n in settled[:, column]}) for column in (2, 3))
    print("| steps | resident memory at a tenth, at the end | slope in 10,000 steps | open files | threads | written |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {steps:,} | {settled[0, 1] / 2**20:.1f} MiB, {settled[-1, 1] / 2**20:.1f} MiB | {slope / 2**10:.0f} KiB "
        f"| {' to '.join(map(str, held))} | {' to '.join(map(str, threads))} "
        f"| {len(files)} files, {written / 2**20:.1f} MiB |"
    )
    grows = steps >= 10_000 and slope >= MOST_GROWTH
    return 0 if not grows and len(held) == len(threads) == 1 else 1


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
