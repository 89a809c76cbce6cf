"""``pnf curves``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import RunsArgument, common_folder, summarise
from pnf.evaluation.curves import draw_curves
from pnf.evaluation.runs import find_runs


def curves_command(
    runs: RunsArgument,
    out: Annotated[
        Path | None, typer.Option(help="Picture: .png, .svg, .pdf. Default: curves.png in the folder of the runs.")
    ] = None,
) -> None:
    """Draw the training curves of one or more runs in bits/dim, for training images and held-out ones.

    Example: pnf curves runs/demo
    """
    folders = [run for folder in runs for run in find_runs(folder)]
    target = common_folder(runs, folders) / "curves.png" if out is None else out
    draw_curves(folders, target)
    summarise([target], "pnf", "evaluate", *runs)
