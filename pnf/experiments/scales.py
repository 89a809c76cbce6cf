"""Results by scale of finished runs of Table 1: anomaly detection, upscaling and projection."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pnf.data.images import Progress
from pnf.evaluation.anomaly import anomaly
from pnf.evaluation.upscaling import quality
from pnf.experiments.rows import Row


def measure_row(
    row: Row,
    source: Path,
    data: Path,
    folder: Path,
    models: Iterable[str],
    *,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress],
) -> Iterator[Path]:
    """Measure anomaly detection by RealNVP and our PNF, on up to 2,000 images of each set, and upscaling by both PNFs.

    Args:
        row: the row.
        source: its data.
        data: the folder around the data sets, including foreign ones.
        folder: the folder of the row.
        models: the names of its finished models.
        seed: the seed of everything random.
        device: the device of the flows.
        progress: makes a progress bar with a description.

    Yields:
        The files written.
    """
    foreign = [str(data / name) for name in row.foreign if (data / name).exists()]
    how: dict[str, Any] = {"data": str(source), "seed": seed, "device": device, "progress": progress}
    for name in models:
        run = folder / name
        if foreign and name != "identity":
            yield from anomaly(run, foreign, run, limit=2000, **how).files
        if name != "realnvp":
            yield from quality(run, run, n=200, draws=16, **how).files
