"""Reading of a run's logs, over all its resumptions."""

import csv
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from pnf.training.config import RunConfig, RunError


def read_logs(folder: Path) -> dict[str, dict[int, float]]:
    """The values of each metric by step. If a resumed run repeated a step, its later value counts.

    Raises:
        RunError: a file is damaged.
    """
    logged: dict[str, dict[int, float]] = defaultdict(dict)
    files = (path for path in folder.glob("logs/version_*/metrics.csv") if _version(path).isdecimal())
    for path in sorted(files, key=lambda path: int(_version(path))):
        try:
            # A kill can cut the last line short.
            lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
            for row in csv.DictReader(lines):
                step = int(row.pop("step"))
                for metric, value in row.items():
                    if value:
                        logged[metric][step] = float(value)
        except (AttributeError, KeyError, TypeError, ValueError, csv.Error):
            # The reader gives surplus cells as a list under no name, and missing ones as None.
            raise RunError(f"{path} is damaged; restore it, or remove it to go on without what it holds") from None
    return logged


def _version(path: Path) -> str:
    return path.parent.name.removeprefix("version_")


def training_seconds(folder: Path) -> float:
    """The seconds of a run's steps, from the speeds in its logs: without validation, and each step once."""
    config = RunConfig.load(folder)
    speeds = sorted(read_logs(folder)["train/images_per_second"].items())
    batch = config.batch_size * config.accumulate
    return sum((after - before) * batch / speed for (before, _), (after, speed) in pairwise([(0, 0.0), *speeds]))
