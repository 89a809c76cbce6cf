"""``pnf sample``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import (
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
from pnf.evaluation.pictures import samples
from pnf.evaluation.runs import find_runs
from pnf.training import RunConfig


def sample_command(
    run: OptionalRunArgument = None,
    pretrained: PretrainedOption = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--number", min=1, max=10000, help="How many; with labels, of each class. Default: 64, or 8 a class."
        ),
    ] = None,
    label: LabelOption = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=10, help="Scale of the noise; 0 is the paper's zero noise.")
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture: .png, .svg, .pdf. Default: samples.png in the run, or here with --pretrained; samples.npz "
            "for real data."
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw a grid of samples from a trained flow. If it has labels, each class is a row.

    Example: pnf sample runs/demo/pnf -n 64 --temperature 0.8

    Example: pnf sample runs/mnist-dense/labels --label 3

    Example: pnf sample --pretrained fashion-mnist
    """
    run, here = pick_run(run, pretrained)
    config = RunConfig.load(find_runs(run)[0])
    target = here / ("samples.png" if config.support == "unit" else "samples.npz") if out is None else out
    written = samples(
        run,
        target,
        n=n,
        labels=label or (),
        temperature=temperature,
        seed=seed,
        device=pick_device(device),
        progress=progress,
    )
    grows = config.model == "progressive" and config.support == "unit" and config.levels > 0
    model = ("--pretrained", pretrained) if pretrained is not None else (run,)
    summarise(written, *(("pnf", "upscale", *model, "--sampled") if grows else ("pnf", "check", run)))
