"""Consoles, options, devices and progress bars, shared by the commands."""

import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from pnf import hub, pretrained
from pnf.cli.output import LineConsole
from pnf.data.images import Examples, brief_list
from pnf.evaluation.runs import class_counts
from pnf.files import json_bytes
from pnf.flows.saving import CONFIG_NAME, WEIGHTS_NAME
from pnf.training import RunConfig, RunError, processes
from pnf.training.fingerprints import DATA_NAME
from pnf.training.progress import tracker

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
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the results as JSON, and everything else on standard error.")
]

progress = partial(tracker, console=notes)
"""Makes a function that wraps an iterable into a bar on standard error, from a description."""


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


def print_json(document: object) -> None:
    """Print a document as it is written into files."""
    console.say(*json_bytes(document).decode().splitlines())


def summarise(files: Iterable[Path], *following: object, json: bool = False) -> None:
    """Say at the end of a command which files it has written, and the words of a command to go on with.

    With ``json`` the standard output has the results alone.
    """
    (notes if json else console).say(*(f"Written: {path}" for path in files))
    if following:
        notes.say(f"Next: {shlex.join(map(str, following))}")


def shares_of_classes(config: RunConfig, folder: Path) -> list[int] | None:
    """The number of training images of each class of a run. A note says if a run with labels does not know them."""
    of_class = class_counts(config, folder)
    if config.labelled and of_class is None:
        notes.say(f"{folder} has no {DATA_NAME} with the share of each class: all are taken as equally probable")
    return of_class


def absent_classes(images: Examples) -> str:
    """The names, in brief, of the classes that no image has, as the first ones of a sorted file."""
    if images.labels is None:
        return ""
    counts = images.labels.bincount(minlength=len(images.classes)).tolist()
    return brief_list([name for name, count in zip(images.classes, counts, strict=True) if not count])


def print_table(title: str, first: str, rows: dict[str, dict[str, float]], digits: str) -> None:
    """Print a table of numbers. Cells without a number stay empty."""
    columns = max((list(row) for row in rows.values()), key=len)
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    for label, row in rows.items():
        table.add_row(label, *(f"{row[column]:{digits}}" if column in row else "" for column in columns))
    console.show(table)


def common_folder(runs: list[Path], folders: list[Path]) -> Path:
    """The folder for results of several runs: the only folder given, or the first run's."""
    return runs[0] if len(runs) == 1 else folders[0]
