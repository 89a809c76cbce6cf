"""``pnf anomaly``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    RunArgument,
    SeedOption,
    console,
    pick_device,
    print_table,
    progress,
)
from pnf.evaluation.anomaly import MEASURES, anomaly


def anomaly_command(
    run: RunArgument,
    foreign: Annotated[list[str], typer.Argument(help="Data sets to tell from the run's own; see docs/data.md.")],
    data: DataOption = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Take only the first so many images of each set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of what is written. Default: that of the run.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """How well a flow tells held-out images of its own data set from others, at each scale (AUROC).

    1 is always, 0.5 is guessing. Below 0.5 foreign images are likelier than its own: the known failure of likelihoods,
    with simple images under a flow of complex ones. Typicality, how far a likelihood is from the usual one, has no such
    preference.

    Example: [bold]pnf anomaly runs/table1/fashion-mnist-dense/bounded data/MNIST[/bold]
    """
    written = anomaly(
        run,
        foreign,
        run if out is None else out,
        data=data,
        limit=limit,
        seed=seed,
        device=pick_device(device),
        progress=progress,
    )
    table = written.document
    for name, measures in table["auroc"].items():
        title = f"AUROC: {table['images']:,} images of {table['own']} against {table['foreign'][name]:,} of {name}"
        print_table(title, "score", {MEASURES[measure]: stages for measure, stages in measures.items()}, ".3f")
    console.say(*(f"Written: {path}" for path in written.files))
