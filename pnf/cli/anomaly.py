"""``pnf anomaly``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    SeedOption,
    pick_device,
    print_json,
    print_table,
    progress,
    shares_of_classes,
    summarise,
)
from pnf.evaluation import find_runs
from pnf.evaluation.anomaly import MEASURES, anomaly
from pnf.training import RunConfig


def anomaly_command(
    run: RunArgument,
    foreign: Annotated[list[str], typer.Argument(help="The foreign data sets; see docs/data.md.")],
    data: DataOption = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Use at most this number of images of each set, its first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results, or a picture. Default: the run's.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Measure how well a flow distinguishes held-out images of its data set from foreign ones, at each scale (AUROC).

    1 is perfect, 0.5 is guessing. Below 0.5 foreign images score higher than its own. That is the known failure of
    likelihoods: simple images are likely under a flow of complex ones. Typicality, the distance of a likelihood from
    the usual one, avoids it.

    Example: pnf anomaly runs/demo/pnf data/MNIST --limit 1000
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
    if "prior" in table:
        [folder] = find_runs(run)
        shares_of_classes(RunConfig.load(folder), folder)
    if json:
        print_json(table)
    else:
        for name, measures in table["auroc"].items():
            title = f"AUROC: {table['images']:,} images of {table['own']} against {table['foreign'][name]:,} of {name}"
            print_table(title, "score", {MEASURES[measure]: stages for measure, stages in measures.items()}, ".3f")
    summarise(written.files, json=json)
