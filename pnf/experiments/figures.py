"""The paper's Figures 2 to 4, and more, from finished runs of Table 1."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pnf import figures
from pnf.data.images import Progress
from pnf.evaluation.curves import draw_curves
from pnf.evaluation.pictures import projected, samples, upscaled
from pnf.experiments.rows import TITLES, Row


def draw_row(
    row: Row,
    source: Path,
    folder: Path,
    models: Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress],
) -> Iterator[Path]:
    """Draw the pictures of a row, one after the other.

    Args:
        row: the row.
        source: its data.
        folder: its folder.
        models: the results of its finished models, by name.
        seed: the seed of everything random.
        device: the device of the flows.
        progress: makes a progress bar with a description.

    Yields:
        The pictures written.
    """
    for name in models:
        run = folder / name
        how: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
        yield from samples(run, run / "samples.png", **how)
        if name != "realnvp":
            yield from upscaled(run, run, sampled=True, **how)
            yield from upscaled(run, run, data=str(source), **how)
            yield projected(run, run / "projection.png", data=str(source), **how).file
    draw_curves([folder / name for name in models], folder / "curves.png")
    yield folder / "curves.png"
    bits = figures.bits_per_stage(
        {TITLES[name]: result["stage_bits_per_dim"] for name, result in models.items()},
        standard_errors={TITLES[name]: result["bits_per_dim_error"] for name, result in models.items()},
        title=f"Where the bits are: {row.title}",
    )
    figures.save(bits, folder / "bits.png")
    yield folder / "bits.png"
