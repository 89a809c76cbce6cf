"""``pnf check``."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from pnf.cli.common import DataOption, DeviceOption, SeedOption, console, pick_device, progress
from pnf.data import dequantize, load
from pnf.evaluation import diagnose
from pnf.evaluation.likelihood import check_images
from pnf.evaluation.runs import load_flow, load_images, load_only
from pnf.flows.saving import CONFIG_NAME
from pnf.training import Flow, RunConfig, RunError, seeded


def check_command(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of a flow that save_pretrained wrote.")],
    data: DataOption = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=1000, help="Number of images.")] = 16,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Check that a trained flow is finite, invertible, normalised and a projection. The exit status is 1 if not.

    The images are held-out ones of the run's data set or of --data. Without either they are samples of the flow.

    Example: [bold]pnf check runs/demo/pnf[/bold]
    """
    config: RunConfig | None = None
    if (model / CONFIG_NAME).is_file():
        flow = load_flow(model).to(pick_device(device))
    else:
        config, flow = load_only(model, pick_device(device))
    x = _images(flow, model, config, data, n, seed).to(pick_device(device))
    checks = diagnose(flow, x, seed=seed, track=progress("Checking stages"))
    table = Table()
    for column in ("check", "measured", "at most", "verdict"):
        table.add_column(column, justify="right" if column in ("measured", "at most") else "left")
    for each in checks:
        verdict = "left out" if each.bound is None else "holds" if each.passed else "FAILS"
        numbers = ("", "") if each.bound is None else (f"{each.measured:.1e}", f"{each.bound:.1e}")
        table.add_row(each.name, *numbers, verdict, style=None if each.passed else "bold red")
    console.print(table)
    failed = [each.name for each in checks if not each.passed]
    if failed:
        raise RunError(f"{model} fails: {', '.join(failed)}")
    left_out = sum(each.bound is None for each in checks)
    note = f", {left_out} left out: their Jacobians are too large" if left_out else ""
    console.say(f"{model}: every check holds{note}")


def _images(flow: Flow, run: Path, config: RunConfig | None, data: str | None, n: int, seed: int) -> torch.Tensor:
    """``[n, *shape]`` in [0, 1]."""
    if config is None and data is None:
        samples = flow.sample(n, generator=torch.Generator().manual_seed(seed))
        pixels = (256 * samples).clamp(0, 255).byte()
        return dequantize(pixels, seeded(seed))
    if config is not None:
        images = load_images(config, "test", run=run, data=data, limit=n, progress=progress)
    else:
        assert data is not None
        if len(flow.shape) != 3:
            raise RunError(f"--data must be images, and the model is of vectors {list(flow.shape)}")
        images = load(data, "test", (flow.shape[1], flow.shape[2]), limit=n)
    check_images(flow, images)
    return dequantize(images.pixels, seeded(seed))
