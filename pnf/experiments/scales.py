"""What the scales of finished runs of Table 1 tell: anomaly detection, upscaling and projection."""

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
    """Anomaly detection by RealNVP and by our PNF, on up to 2,000 images of each set, and upscaling by both PNFs.

    Args:
        row: which.
        source: its data.
        data: the folder around the data sets, with foreign ones.
        folder: of the row.
        models: the names of its finished models.
        seed: of all that is drawn.
        device: where the flows run.
        progress: makes a progress bar of a description.

    Yields:
        The files that are written.
    """
    foreign = [str(data / name) for name in row.foreign if (data / name).exists()]
    how: dict[str, Any] = {"data": str(source), "seed": seed, "device": device, "progress": progress}
    for name in models:
        run = folder / name
        if foreign and name != "identity":
            yield from anomaly(run, foreign, run, limit=2000, **how).files
        if name != "realnvp":
            yield from quality(run, run, n=200, draws=16, **how).files
