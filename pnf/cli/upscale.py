"""``pnf upscale``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    OptionalRunArgument,
    PretrainedOption,
    SeedOption,
    console,
    pick_device,
    pick_run,
    progress,
)
from pnf.evaluation.pictures import upscaled
from pnf.training import RunError


def upscale_command(
    run: OptionalRunArgument = None,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images: of a stage's resolution they grow from there; others go down and up again."),
    ] = None,
    pretrained: PretrainedOption = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="Start from images that the base flow draws.")] = False,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=64, help="Rows, where no files are given.")] = 6,
    temperature: Annotated[
        list[float] | None,
        typer.Option(min=0, max=10, help="Repeat for several. One, and no --draws: a column for each stage."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, max=16, help="Draws at each temperature.")] = 1,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pictures. Default: that of the run, or here with --pretrained.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Low-resolution images on their way up, each stage a column (the paper's Figures 2 to 4).

    Without files, held-out images of the run's data set go down and up again (Figure 4); with --sampled, images of the
    base flow go up (Figures 2 and 3). Files are also written upscaled, one PNG for each draw.

    Example: [bold]pnf upscale runs/demo/pnf photo.png --temperature 0.7 --draws 3[/bold]
    """
    if pretrained is not None:
        # Then the first of the arguments is no run, but a file.
        run, files = None, [file for file in (run, *(files or ())) if file is not None]
    if files and sampled:
        raise RunError("--sampled and files exclude each other")
    run, here = pick_run(run, pretrained)
    written = upscaled(
        run,
        here if out is None else out,
        files=files or (),
        sampled=sampled,
        n=n,
        temperatures=temperature or (0.0,),
        draws=draws,
        data=data,
        seed=seed,
        device=pick_device(device),
        progress=progress,
    )
    console.say(*(f"Written: {path}" for path in written))
