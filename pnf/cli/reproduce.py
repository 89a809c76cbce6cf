"""``pnf reproduce``: the paper's table and figures, each in one command."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pnf.cli.common import DeviceOption, SeedOption, console, notes, pick_device, progress, summarise
from pnf.cli.output import MARKUP
from pnf.experiments.ablation import ablate_row, ablations, variants
from pnf.experiments.budget import PLAN, QUICK, Budget, locked
from pnf.experiments.figures import draw_row
from pnf.experiments.glow import train_glow
from pnf.experiments.rows import GLOW, MODELS, ROWS, Row
from pnf.experiments.scales import measure_row
from pnf.experiments.table1 import results, train_row
from pnf.experiments.tables import ablation, scales, table1
from pnf.files import replace_file, replace_json
from pnf.training import RunError

app = typer.Typer(
    help="Reproduce the paper's results: models at equal budgets, tables and figures.",
    epilog="Example: pnf reproduce table1 --data data --out runs/table1 --quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=MARKUP,
)

DataRootOption = Annotated[Path, typer.Option(help="Folder around the data sets; see docs/results.md.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A trial of a few minutes whose figures mean nothing.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the results.")]
RowOption = Annotated[
    list[str] | None,
    typer.Option(help=f"Only this row; repeat the option for several: {', '.join(row.name for row in ROWS)}."),
]


TABLES = {"table1": (results, table1), "ablation": (ablations, ablation)}
"""For each table, the function that finds the results in a folder and the one that writes the table."""


@app.command("table1")
def table1_command(
    data: DataRootOption,
    out: OutOption,
    budget: Annotated[
        float | None, typer.Option(min=0.001, help="Minutes of training, for all models together. Default: 720.")
    ] = None,
    quick: QuickOption = False,
    row: RowOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train RealNVP, PNF as in the paper and our PNF for equal times, on every data set found (Table 1).

    If it is stopped or killed, the same command resumes it. Several processes can share a folder if their rows differ.

    Example: pnf reproduce table1 --data data --out runs/table1 --budget 720
    """
    found = _find(row, data)
    budget_of_each = _budget(budget, quick, 720, len(found) * len(MODELS))
    _train(train_row, found, out, "table1", budget_of_each, device)
    summarise((), "pnf", "reproduce", "figures", "--data", data, "--out", out)


@app.command("glow")
def glow_command(
    data: DataRootOption,
    out: OutOption,
    row: RowOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train Glow as normflows does, in the time of the models of pnf reproduce table1, and add its column.

    The networks and the optimiser are those of normflows' example. It needs pip install 'pnf[normflows]'.

    Example: pnf reproduce glow --data data --out runs/table1 --row mnist-28
    """
    begun = [(known, source) for known, source in _find(row, data) if row or (out / known.name / PLAN).exists()]
    if not begun:
        raise RunError(f"{out} holds no row of pnf reproduce table1, whose times Glow gets: train its models first")
    _train(train_glow, begun, out, "table1", QUICK, device)


@app.command("ablation")
def ablation_command(
    data: DataRootOption,
    out: OutOption,
    budget: Annotated[
        float | None, typer.Option(min=0.001, help="Minutes of training, for all variants together. Default: 240.")
    ] = None,
    quick: QuickOption = False,
    row: RowOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Change one setting of our PNF at a time, and train its last stage for equal times (ablation.md).

    Held-out training images judge it. If it is stopped or killed, the same command resumes it.

    Example: pnf reproduce ablation --data data --out runs/ablation --row cifar10-subset --budget 30
    """
    found = _find(row, data)
    budget_of_each = _budget(budget, quick, 240, sum(len(variants(known)) for known, _ in found))
    _train(ablate_row, found, out, "ablation", budget_of_each, device)


@app.command("figures")
def figures_command(
    data: DataRootOption,
    out: OutOption,
    row: RowOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw the paper's Figures 2 to 4, and more, from finished runs of pnf reproduce table1.

    The folder of each PNF gets samples of the base upscaled with zero noise (upscaled-samples.png, Figures 2 and 3),
    held-out images downscaled and upscaled again (upscaled-real.png, Figure 4), samples and projections. The folder of
    the row gets training curves, and the bits of each stage.

    Example: pnf reproduce figures --data data --out runs/table1
    """
    for known, source, models in _finished(row, data, out):
        how: dict[str, Any] = {"seed": seed, "device": pick_device(device), "progress": progress}
        for path in draw_row(known, source, out / known.name, models, **how):
            summarise([path])
    summarise((), "pnf", "reproduce", "scales", "--data", data, "--out", out)


@app.command("scales")
def scales_command(
    data: DataRootOption,
    out: OutOption,
    row: RowOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Measure results by scale: bits by resolution, anomaly detection, upscaling and projection (scales.md).

    For finished runs of pnf reproduce table1, this runs pnf anomaly of RealNVP and of our PNF, on up to 2,000 images
    of each set, and pnf quality of both PNFs, on 200.

    Example: pnf reproduce scales --data data --out runs/table1
    """
    for known, source, models in _finished(row, data, out):
        how: dict[str, Any] = {"seed": seed, "device": pick_device(device), "progress": progress}
        for path in measure_row(known, source, data, out / known.name, models, **how):
            summarise([path])
    text = scales(out)
    replace_file(out / "scales.md", text.encode())
    console.say(*text.splitlines())
    summarise([out / "scales.md"])


def _find(names: list[str] | None, data: Path) -> list[tuple[Row, Path]]:
    """Find the chosen rows whose data exists, and report the others."""
    known = [row.name for row in ROWS]
    if unknown := [name for name in names or () if name not in known]:
        raise RunError(f"there is no row {', '.join(unknown)}; there are {', '.join(known)}")
    found = []
    for row in ROWS:
        if names and row.name not in names:
            continue
        path = row.find(data)
        if path is None:
            notes.say(f"Left out {row.title}: {data} holds no {' or '.join(row.sources)}")
        else:
            found.append((row, path))
    if not found:
        raise RunError(f"{data} holds the data of none of the rows; docs/results.md lists what they need")
    return found


def _finished(names: list[str] | None, data: Path, out: Path) -> list[tuple[Row, Path, dict[str, dict[str, Any]]]]:
    """Find the chosen rows with data and finished models, and their results."""
    models = results(out)
    found = [
        (row, path, {name: result for name, result in models[row.name].items() if name != GLOW})
        for row, path in _find(names, data)
        if row.name in models
    ]
    if not found:
        raise RunError(f"{out} holds no finished run of these rows; train them with: pnf reproduce table1 --out {out}")
    return found


def _budget(minutes: float | None, quick: bool, default: float, runs: int) -> Budget:
    """The budget of each of several runs."""
    if quick and minutes is not None:
        raise RunError("--quick has a budget of its own: leave out --budget")
    return QUICK if quick else Budget(60 * (default if minutes is None else minutes) / runs)


def _train(
    work: Callable[..., list[str]], found: list[tuple[Row, Path]], out: Path, name: str, budget: Budget, device: str
) -> None:
    """Train the models of a table, and print it."""
    failures = []
    for row, source in found:
        failures += work(
            row,
            source,
            out / row.name,
            budget,
            device=pick_device(device),
            console=notes,
            track=progress,
            finished=lambda: _write(out, name),
        )
    _write(out, name)
    console.say(*(out / f"{name}.md").read_text(encoding="utf-8").splitlines())
    summarise([out / f"{name}.md", out / f"{name}.json"])
    if failures:
        raise RunError(f"not all models could be trained: {'; '.join(failures)}")


def _write(out: Path, name: str) -> None:
    """Write a table of all finished results, also those of other processes."""
    with locked(out):
        find, write = TABLES[name]
        finished = find(out)
        replace_json(out / f"{name}.json", finished)
        replace_file(out / f"{name}.md", write(finished).encode())
