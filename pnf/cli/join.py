"""``pnf join``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import console, summarise
from pnf.training import join


def join_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of the same settings, with different stages.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined run.")],
) -> None:
    """Join stages that were trained apart, here or on other machines, into one run.

    Example: pnf join machine1/run machine2/run --out runs/joined
    """
    missing = join(runs, out)
    console.say(f"Joined: {out}")
    if missing:
        console.say(f"Stages still to train: {' '.join(missing)}")
    summarise((), "pnf", *(("train", "--resume") if missing else ("evaluate",)), out)
