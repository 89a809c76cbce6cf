"""``pnf upscale``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    LabelOption,
    OptionalRunArgument,
    PretrainedOption,
    SeedOption,
    pick_device,
    pick_run,
    progress,
    summarise,
)
from pnf.evaluation.pictures import upscaled
from pnf.training import RunError


def upscale_command(
    run: OptionalRunArgument = None,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images. At a stage's resolution they are upscaled, others are downscaled and upscaled again."
        ),
    ] = None,
    pretrained: PretrainedOption = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="Start from samples of the base flow.")] = False,
    label: LabelOption = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=64, help="Number of rows without files.")] = 6,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=10,
            help="Scale of the noise; repeat for several. One shows each stage, unless --draws is more than 1.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, max=16, help="Draws at each temperature.")] = 1,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures. Default: the run's, or this one with --pretrained.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Upscale low-resolution images, one column for each stage (the paper's Figures 2 to 4).

    Without files, held-out images of the run's data set are downscaled and upscaled again (Figure 4), or with --sampled
    samples of the base flow are upscaled (Figures 2 and 3). Each draw from a file is also written as a PNG.

    A flow with labels upscales held-out images by their own, and files by --label, one for all or one for each.

    Example: pnf upscale runs/demo/pnf photo.png --temperature 0.7 --draws 3
    """
    if pretrained is not None:
        # Then the first argument is a file and no run.
        run, files = None, [file for file in (run, *(files or ())) if file is not None]
    if files and sampled:
        raise RunError("--sampled and files exclude each other")
    run, here = pick_run(run, pretrained)
    written = upscaled(
        run,
        here if out is None else out,
        files=files or (),
        sampled=sampled,
        labels=label or (),
        n=n,
        temperatures=temperature or (0.0,),
        draws=draws,
        data=data,
        seed=seed,
        device=pick_device(device),
        progress=progress,
    )
    summarise(written, *(("pnf", "quality", run) if pretrained is None else ()))
