"""``pnf evaluate``."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import pnf
from pnf import figures
from pnf.cli.common import (
    DataOption,
    DeviceOption,
    JsonOption,
    RunsArgument,
    SeedOption,
    absent_classes,
    common_folder,
    console,
    notes,
    pick_device,
    print_json,
    print_table,
    progress,
    shares_of_classes,
    summarise,
)
from pnf.data import locate
from pnf.evaluation import Classification, Evaluation, RealEvaluation, evaluate, evaluate_reals
from pnf.evaluation.image_files import chart, check_targets
from pnf.evaluation.runs import find_runs, load_images, load_run, run_names
from pnf.files import replace_json
from pnf.training import RunConfig, RunError, processes


def evaluate_command(
    runs: RunsArgument,
    data: DataOption = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Evaluate at most this number of images, the first.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json and bits.png, or a picture. Default: that of the runs.")
    ] = None,
    draws: Annotated[
        int, typer.Option(min=1, help="Draws of dequantization noise for each image; more bound its bits tighter.")
    ] = 1,
    variational: Annotated[
        bool, typer.Option("--variational", help="Also fit the noise to each image, for a still tighter bound.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 250,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Measure the likelihood of held-out images in nats and bits/dim, total and by stage, for one or more runs.

    The standard error is over images. Every run sees the same images with the same dequantization noise. With --draws K
    a further column has the bits of log (1/K sum p(x + noise)), the importance-weighted bound of the 8-bit image. With
    --variational one more has that bound for noise that is fitted to each image, in about the time of six draws.

    The likelihoods of a run with labels are those given the label. A further table has the accuracy of the most
    probable class by Bayes' rule and its expected calibration error, and the bits/dim without the label. The time grows
    with the number of classes.

    Runs on real data (--support real) have nats and nats/dim of the data in its own units.

    Example: pnf evaluate runs/demo
    """
    folders = [run for folder in runs for run in find_runs(folder)]
    target = out if out is not None else common_folder(runs, folders)
    picture = chart(target, "bits")
    written = [picture.parent / "metrics.json", picture]
    check_targets(written)
    names = dict(zip(folders, run_names(folders), strict=True))
    found: dict[str, tuple[RunConfig, Evaluation]] = {}
    real: dict[str, tuple[RunConfig, RealEvaluation]] = {}
    for folder in folders:
        try:
            config, flow = load_run(folder)
        except RunError as error:
            if len(folders) == 1:
                raise
            notes.say(f"Left out: {error}")
            continue
        images = load_images(config, "test", run=folder, data=data, limit=limit, progress=progress)
        name = names[folder]
        track = progress(f"Evaluating {name}")
        flow = flow.to(pick_device(device))
        if config.standardisation is not None:
            if draws > 1 or variational:
                option = "--variational" if variational else "--draws"
                raise RunError(f"{option} is of the noise of 8-bit images, and {folder} is a run on real data")
            how: dict[str, Any] = {"batch_size": batch_size, "track": track}
            real[name] = (config, evaluate_reals(flow, images, config.standardisation, **how))
            continue
        how = {"seed": seed, "draws": draws, "variational": variational, "batch_size": batch_size, "track": track}
        of_class = shares_of_classes(config, folder)
        if absent := absent_classes(images):
            notes.say(f"No image is of the classes {absent}: the accuracy is that of the others")
        result = evaluate(flow, images, of_class=of_class, **how)
        found[name] = (config, result)
    if not found and not real:
        raise RunError("none of the runs can be evaluated")
    if processes.rank():
        return
    document = {
        "pnf": pnf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(pick_device(device)),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "models": {
            name: {
                "settings": config.settings(),
                "data": config.data if data is None else locate(data),
                "limit": limit,
                "result": asdict(result),
            }
            for name, (config, result) in (found | real).items()
        },
    }
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        replace_json(written[0], document)
        if found:
            figure = figures.bits_per_stage(
                {name: result.stage_bits_per_dim for name, (_, result) in found.items()},
                standard_errors={name: result.bits_per_dim_error for name, (_, result) in found.items()},
            )
            figures.save(figure, written[1])
    finally:
        # If the disk is full, these tables are all that remains of a long evaluation.
        if json:
            print_json(document)
        else:
            if found:
                _print_tables(found)
            if real:
                _print_reals(real)
    done = [folder for folder in folders if names[folder] in found | real]
    following = ("sample", *done) if len(done) == 1 else ("curves", *runs)
    summarise(written if found else written[:1], "pnf", *following, json=json)


def best_of(found: dict[str, tuple[RunConfig, Evaluation]]) -> float | None:
    """The fewest bits/dim of several models, if they can be compared."""
    # They must be of the same images, and all or none of them must see the labels.
    kinds = {(config.data, config.size, config.labelled, result.images) for config, result in found.values()}
    bits = [result.bits_per_dim for _, result in found.values()]
    return min(bits) if len(kinds) == 1 and len(bits) > 1 else None


def _print_tables(found: dict[str, tuple[RunConfig, Evaluation]]) -> None:
    table = Table(title="Held-out log-likelihood, mean ± standard error over images")
    table.add_column("model")
    draws = max(result.draws for _, result in found.values())
    bound = [f"{draws} draws"] if draws > 1 else []
    fitted = any(result.variational_bits_per_dim is not None for _, result in found.values())
    for column in ("nats", "bits/dim", *bound, *(["variational"] if fitted else []), "params", "steps", "images"):
        table.add_column(column, justify="right")
    best = best_of(found)
    for name, (config, result) in found.items():
        table.add_row(
            f"{name} (given the label)" if config.labelled else name,
            f"{result.nats:,.1f} ± {result.nats_error:.1f}",
            f"{result.bits_per_dim:.3f} ± {result.bits_per_dim_error:.3f}",
            *(f"{result.draws_bits_per_dim:.3f} ± {result.draws_bits_per_dim_error:.3f}" for _ in bound),
            *(
                [f"{result.variational_bits_per_dim:.3f} ± {result.variational_bits_per_dim_error:.3f}"]
                if fitted
                else []
            ),
            f"{result.parameters / 1e6:.2f}M",
            f"{config.steps:,}",
            f"{result.images:,}",
            style="bold" if result.bits_per_dim == best else None,
        )
    console.show(table)
    if any(result.classification for _, result in found.values()):
        _print_classification({name: result.classification for name, (_, result) in found.items()})
    stages = max((list(result.stage_bits_per_dim) for _, result in found.values()), key=len)
    if len(stages) == 1:
        return
    table = Table(title="Share of each stage in the bits/dim of the image")
    table.add_column("model")
    for stage in [*stages, "sum"]:
        table.add_column(stage, justify="right")
    for name, (_, result) in found.items():
        shares = result.stage_bits_per_dim
        cells = [f"{shares[stage]:.3f}" if stage in shares else "" for stage in stages]
        table.add_row(name, *cells, f"{sum(shares.values()):.3f}")
    console.show(table)


def _print_classification(found: dict[str, Classification | None]) -> None:
    table = Table(title="The most probable class of each image, by Bayes' rule")
    table.add_column("model")
    for column in ("accuracy", "calibration error", "bits/dim, no label", "classes", "images"):
        table.add_column(column, justify="right")
    for name, result in found.items():
        if result is not None:
            table.add_row(
                name,
                f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_error:.2f} %",
                f"{result.calibration_error:.3f}",
                f"{result.bits_per_dim:.3f} ± {result.bits_per_dim_error:.3f}",
                f"{result.classes:,}",
                f"{result.images:,}",
            )
    console.show(table)


def _print_reals(found: dict[str, tuple[RunConfig, RealEvaluation]]) -> None:
    table = Table(title="Held-out log-likelihood of real data, mean ± standard error over examples")
    table.add_column("model")
    for column in ("nats", "nats/dim", "params", "steps", "examples"):
        table.add_column(column, justify="right")
    for name, (config, result) in found.items():
        table.add_row(
            name,
            f"{result.nats:,.1f} ± {result.nats_error:.1f}",
            f"{result.nats_per_dim:.3f} ± {result.nats_per_dim_error:.3f}",
            f"{result.parameters / 1e6:.2f}M",
            f"{config.steps:,}",
            f"{result.examples:,}",
        )
    console.show(table)
    shares = {
        name: {**result.stage_nats, "standardisation": result.standardisation_nats, "sum": result.nats}
        for name, (_, result) in found.items()
    }
    print_table("Share of each stage in the nats", "model", shares, ",.1f")
