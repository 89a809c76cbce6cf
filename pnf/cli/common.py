"""What the commands share: consoles, devices, runs and images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.progress import track

from pnf import pretrained
from pnf.cli.output import LineConsole, printable
from pnf.data import Images, load
from pnf.flows import ProgressiveFlow
from pnf.training import Flow, RunConfig, RunError, exact_arithmetic, find_runs, load_run, processes
from pnf.training.fingerprints import check_test, check_training

# Of several processes one talks.
console = LineConsole(quiet=processes.rank() > 0)
notes = LineConsole(stderr=True, quiet=processes.rank() > 0)

_RUN = typer.Argument(help="Folder of a run, e.g. runs/demo/pnf.")
RunArgument = Annotated[Path, _RUN]
OptionalRunArgument = Annotated[Path | None, _RUN]
PretrainedOption = Annotated[
    str | None,
    typer.Option(help=f"In place of a run, a model that comes with pnf: {', '.join(pretrained.names())}."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")]
DataOption = Annotated[str | None, typer.Option(help="Another data set than the run's own; see docs/data.md.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all that is drawn.")]


def pick_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        RunError: there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("there is no CUDA device that torch can use here; pnf doctor tells more")
    if name not in ("cpu", "cuda"):
        raise RunError(f"--device must be cpu, cuda or auto, got {name!r}")
    return torch.device(name, processes.local_rank()) if name == "cuda" else torch.device(name)


def pick_run(run: Path | None, name: str | None) -> tuple[Path, Path]:
    """The folder of a run or of a model that comes with pnf, and where its pictures go if nothing else is said.

    Raises:
        RunError: neither is given, or both, or there is no such model.
    """
    if (run is None) == (name is None):
        raise RunError("give either the folder of a run or --pretrained")
    if run is not None:
        return run, run
    assert name is not None
    try:
        return pretrained.folder(name), Path()
    except ValueError as error:
        raise RunError(str(error)) from None


def progress(description: str) -> Any:
    """Wraps an iterable into a progress bar on standard error."""

    def wrap(items: Iterable[Any]) -> Iterable[Any]:
        return track(items, description=escape(printable(description)), console=notes, transient=True)

    return wrap


def load_images(
    config: RunConfig, split: str, *, run: Path | None = None, data: str | None = None, limit: int | None = None
) -> Images:
    """A split of the run's data set, or of another, at the run's size.

    Args:
        config: the run's settings.
        split: of the data set.
        run: the folder of the run, or around it: its own images must be those that it remembers.
        data: the other data set, which nothing is known of.
        limit: how many images are read at most.

    Raises:
        RunError: other images lie where the run's own were.
        DataError: the data set cannot be read.
    """
    reading = progress(f"Reading {config.data if data is None else data}")
    images = load(config.source if data is None else data, split, config.size, limit=limit, progress=reading)
    for folder in find_runs(run) if run is not None and data is None else ():
        if RunConfig.load(folder) == config:
            if split == "train":
                check_training(folder, config, images)
            else:
                check_test(folder, config, images, limit)
    return images


def load_progressive(folder: Path, device: str) -> tuple[RunConfig, ProgressiveFlow]:
    """The one trained ProgressiveFlow in a folder.

    Raises:
        RunError: there is none, or more than one.
    """
    runs = [run for run in find_runs(folder) if RunConfig.load(run).model == "progressive"]
    if not runs:
        raise RunError(f"{folder} holds no ProgressiveFlow, and only that can grow images")
    config, flow = _load_one(folder, runs, device)
    assert isinstance(flow, ProgressiveFlow)
    return config, flow


def load_any(folder: Path, device: str) -> tuple[RunConfig, Flow]:
    """The one trained flow in a folder.

    Raises:
        RunError: there is none, or more than one.
    """
    return _load_one(folder, find_runs(folder), device)


def _load_one(folder: Path, runs: list[Path], device: str) -> tuple[RunConfig, Flow]:
    if len(runs) > 1:
        raise RunError(f"{folder} holds several runs, choose one: {', '.join(str(run) for run in runs)}")
    config, flow = load_run(runs[0])
    exact_arithmetic()
    return config, flow.to(pick_device(device))
