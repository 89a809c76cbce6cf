"""``pnf reproduce``: the paper's table and figures, each in one command."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pnf import figures
from pnf.cli import pictures
from pnf.cli.common import DeviceOption, SeedOption, console, notes, pick_device, progress
from pnf.cli.evaluate import curves_command
from pnf.flows.pretrained import replace_file
from pnf.training import RunError
from pnf.training.reproduction import MODELS, QUICK, ROWS, TITLES, Budget, locked, results, train_row

app = typer.Typer(
    help="The paper's results: the same models at equal budgets, from data to table.", no_args_is_help=True
)

DataRootOption = Annotated[Path, typer.Option(help="Folder around the data sets; see docs/results.md.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the results.")]


@app.command("table1")
def table1_command(
    data: DataRootOption,
    out: OutOption,
    budget: Annotated[
        float | None, typer.Option(min=0.001, help="Minutes of training, for all models together. Default: 720.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A trial of a few minutes whose figures say nothing.")] = False,
    row: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this row; repeat for several: {', '.join(row.name for row in ROWS)}."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train RealNVP, PNF as in the paper and ours in equal times, on every data set that is there (Table 1).

    Stopped or killed, the same command goes on. Several processes can share a folder, each with rows of its own.

    Example: [bold]pnf reproduce table1 --data data --out runs/table1 --budget 720[/bold]
    """
    if quick and budget is not None:
        raise RunError("--quick has a budget of its own: leave out --budget")
    names = [known.name for known in ROWS]
    if unknown := [name for name in row or () if name not in names]:
        raise RunError(f"there is no row {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [known for known in ROWS if not row or known.name in row]
    found = {known.name: path for known in chosen if (path := known.find(data)) is not None}
    for known in chosen:
        if known.name not in found:
            notes.print(f"Left out {known.title}: {data} holds no {' or '.join(known.sources)}", soft_wrap=True)
    if not found:
        raise RunError(f"{data} holds the data of none of the rows; docs/results.md lists what they need")
    seconds = 60 * (720 if budget is None else budget) / (len(found) * len(MODELS))
    failures = []
    for known in chosen:
        if known.name in found:
            failures += train_row(
                known,
                found[known.name],
                out / known.name,
                QUICK if quick else Budget(seconds),
                device=pick_device(device),
                console=notes,
                track=progress,
                finished=lambda: _write_table(out),
            )
    _write_table(out)
    console.print((out / "table1.md").read_text(encoding="utf-8"), soft_wrap=True)
    console.print(f"Written: {out / 'table1.md'}, {out / 'table1.json'}", soft_wrap=True)
    if failures:
        raise RunError(f"not all models could be trained: {'; '.join(failures)}")


@app.command("figures")
def figures_command(
    data: DataRootOption,
    out: OutOption,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw the paper's Figures 2 to 4, and more, from the finished runs of pnf reproduce table1.

    Into the folder of each PNF: sampled images of the base growing with zero noise (upscaled-samples.png, Figures 2 and
    3), held-out images that go down and up again (upscaled-real.png, Figure 4), samples and projections. Into that of
    the row: training curves, and where the bits are.

    Example: [bold]pnf reproduce figures --data data --out runs/table1[/bold]
    """
    finished = results(out)
    if not finished:
        raise RunError(f"{out} holds no finished run; make some with: pnf reproduce table1 --out {out}")
    for row in ROWS:
        models = finished.get(row.name, {})
        source = row.find(data)
        if models and source is None:
            notes.print(f"Left out {row.title}: {data} holds no {' or '.join(row.sources)}", soft_wrap=True)
            continue
        for name in models:
            run = out / row.name / name
            pictures.sample_command(run, seed=seed, device=device)
            if name != "realnvp":
                pictures.upscale_command(run, sampled=True, seed=seed, device=device)
                pictures.upscale_command(run, data=str(source), seed=seed, device=device)
                pictures.project_command(run, data=str(source), seed=seed, device=device)
        if models:
            curves_command([out / row.name / name for name in models], out / row.name / "curves.png")
            bits = figures.bits_per_stage(
                {TITLES[name]: result["stage_bits_per_dim"] for name, result in models.items()},
                standard_errors={TITLES[name]: result["bits_per_dim_error"] for name, result in models.items()},
                title=f"Where the bits are: {row.title}",
            )
            figures.save(bits, out / row.name / "bits.png")
            console.print(f"Written: {out / row.name / 'bits.png'}", soft_wrap=True)


def _write_table(out: Path) -> None:
    """Write what is finished, by whichever process."""
    with locked(out):
        finished = results(out)
        replace_file(out / "table1.json", (json.dumps(finished, indent=2) + "\n").encode())
        replace_file(out / "table1.md", _markdown(finished).encode())


def _markdown(finished: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = [row for row in ROWS if row.name in finished]
    lines = [
        "# Table 1",
        "",
        "Held-out bits/dim, mean ± standard error over test images; the difference to RealNVP is taken image by image.",
        "",
        f"| | {' | '.join(TITLES.values())} | ours below RealNVP | the paper's RealNVP, PNF |",
        "| --- " * (len(MODELS) + 3) + "|",
    ]
    for row in rows:
        models = finished[row.name]
        best = min(result["bits_per_dim"] for result in models.values())
        cells = [_bits(models[name], best) if name in models else "" for name in MODELS]
        paper = "" if row.paper is None else f"{row.paper[0]:.2f}, {row.paper[1]:.2f}"
        lines.append(f"| {row.title} | {' | '.join(cells)} | {_below(models.get('bounded', {}))} | {paper} |")
    lines += [
        "",
        "| | model | nats | bits/dim | below RealNVP | parameters | steps | seconds | peak memory |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        for name, result in finished[row.name].items():
            memory = result["peak_memory_bytes"]
            cells = [
                row.title,
                TITLES[name],
                f"{result['nats']:,.1f} ± {result['nats_error']:.1f}",
                f"{result['bits_per_dim']:.3f} ± {result['bits_per_dim_error']:.3f}",
                _below(result),
                f"{result['parameters']:,}",
                f"{result['steps']:,}",
                f"{result['seconds']:,.0f}",
                "" if memory is None else f"{memory / 2**20:,.0f} MiB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for row in rows:
        runs = list(finished[row.name].values())
        what = [
            f"{runs[0]['images']:,} test images",
            f"{runs[0]['budget_seconds'] / 60:.3g} minutes a model",
            *dict.fromkeys(
                f"{result['hardware']}, threads: {result['threads']}, torch {result['torch']}, seed {result['seed']}, "
                f"commit {result['commit'] or 'unknown'}"
                for result in runs
            ),
        ]
        lines.append(f"- {row.title}: {'; '.join(what)}")
    return "\n".join(lines) + "\n"


def _bits(result: dict[str, Any], best: float) -> str:
    text = f"{result['bits_per_dim']:.3f} ± {result['bits_per_dim_error']:.3f}"
    return f"**{text}**" if result["bits_per_dim"] == best else text


def _below(result: dict[str, Any]) -> str:
    if "below_realnvp" not in result:
        return ""
    return f"{result['below_realnvp']:.3f} ± {result['below_realnvp_error']:.3f}"
