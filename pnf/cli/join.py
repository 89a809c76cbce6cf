"""``pnf join``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import console
from pnf.training import join


def join_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of the same settings, with different stages.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined run.")],
) -> None:
    """Join stages that were trained apart, here or on other machines, into one run.

    Example: [bold]pnf join machine1/f0 machine2/f1x machine3/f1y --out runs/joined[/bold]
    """
    missing = join(runs, out)
    if missing:
        console.say(f"Joined. Stages still to train: {' '.join(missing)} (pnf train --resume {out})")
    else:
        console.say(f"Joined: {out}. Next: pnf evaluate {out}")
