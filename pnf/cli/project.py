"""``pnf project``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    LabelOption,
    RunArgument,
    SeedOption,
    console,
    pick_device,
    progress,
    summarise,
)
from pnf.evaluation.pictures import projected


def project_command(
    run: RunArgument,
    files: Annotated[list[Path] | None, typer.Argument(help="Images. Default: held-out images of the run.")] = None,
    label: LabelOption = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=64, help="Number of images without files.")] = 8,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture: .png, .svg, .pdf. Default: projection.png in the run.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw images, their low-resolution codes, and their projections onto the manifold of the decoder.

    Example: pnf project runs/demo/pnf -n 8
    """
    found = projected(
        run,
        run / "projection.png" if out is None else out,
        files=files or (),
        labels=label or (),
        n=n,
        data=data,
        seed=seed,
        device=pick_device(device),
        progress=progress,
    )
    console.say(
        f"Root mean square error of the projection: {found.error:.4f}; projecting again moves it by {found.again:.1e}"
    )
    summarise([found.file], "pnf", "quality", run)
