"""Consoles, options, devices and progress bars, shared by the commands."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from pnf import hub, pretrained
from pnf.cli.output import LineConsole
from pnf.data.images import Progress
from pnf.files import printable
from pnf.flows.saving import CONFIG_NAME, WEIGHTS_NAME
from pnf.training import RunError, processes

# Only the first process prints.
console = LineConsole(quiet=processes.rank() > 0)
notes = LineConsole(stderr=True, quiet=processes.rank() > 0)

_RUN = typer.Argument(help="Folder of a run, e.g. runs/demo/pnf.")
RunArgument = Annotated[Path, _RUN]
RunsArgument = Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs.")]
OptionalRunArgument = Annotated[Path | None, _RUN]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        help=f"A model that comes with pnf, in place of a run: {', '.join(pretrained.names())}; or owner/name of the "
        "Hugging Face Hub."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]
DataOption = Annotated[str | None, typer.Option(help="A data set in place of the run's own; see docs/data.md.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="A class, by name or number, of a run with labels; repeatable.")
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]


def pick_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        RunError: the name is unknown, or there is no such device for this process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("there is no CUDA device that torch can use here; pnf doctor tells more")
    if name not in ("cpu", "cuda"):
        raise RunError(f"--device must be cpu, cuda or auto, got {name!r}")
    return processes.gpu() if name == "cuda" else torch.device(name)


def pick_run(run: Path | None, name: str | None) -> tuple[Path, Path]:
    """The folder of a run, of a bundled model or of one of the hub, and the default folder for its pictures.

    Raises:
        RunError: neither is given, or both, or the model is unknown or cannot be had.
    """
    if (run is None) == (name is None):
        raise RunError("give either the folder of a run or --pretrained")
    if run is not None:
        return run, run
    assert name is not None
    try:
        if hub.is_name(name):
            return hub.download(name, [CONFIG_NAME, WEIGHTS_NAME, hub.SETTINGS_NAME]), Path()
        return pretrained.folder(name), Path()
    except (OSError, ValueError) as error:
        raise RunError(str(error)) from None


def progress(description: str) -> Progress:
    """Make a function that wraps an iterable into a progress bar on standard error."""

    def wrap(items: Iterable[Any]) -> Iterable[Any]:
        return track(items, description=escape(printable(description)), console=notes, transient=True)

    return wrap


def print_table(title: str, first: str, rows: dict[str, dict[str, float]], digits: str) -> None:
    """Print a table of numbers. Cells without a number stay empty."""
    columns = max((list(row) for row in rows.values()), key=len)
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for label, row in rows.items():
        table.add_row(label, *(f"{row[column]:{digits}}" if column in row else "" for column in columns))
    console.print(table)


def common_folder(runs: list[Path], folders: list[Path]) -> Path:
    """The folder for results of several runs: the only folder given, or the first run's."""
    return runs[0] if len(runs) == 1 else folders[0]
