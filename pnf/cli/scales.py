"""``pnf anomaly`` and ``pnf quality``: what the resolutions of a trained flow are good for."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich.table import Table

from pnf import figures
from pnf.cli.common import (
    DataOption,
    DeviceOption,
    RunArgument,
    SeedOption,
    console,
    load_any,
    load_images,
    load_progressive,
    progress,
)
from pnf.cli.files import check_targets
from pnf.data import Images
from pnf.files import replace_json
from pnf.flows import ProgressiveFlow
from pnf.flows.shapes import bits_per_dim
from pnf.training import Flow, RunError, seeded
from pnf.training.evaluation import check_images, stage_log_probs
from pnf.training.scales import auroc, scores, typical_images, upscaled, upscaling_quality
from pnf.training.units import stage_dims, stage_names

ANOMALY, QUALITY = "anomaly.json", "quality.json"

MEASURES = {
    "image": "log p at this scale",
    "stage": "log p of the stage",
    "typicality": "typicality",
}

BATCH = 100

OutOption = Annotated[Path | None, typer.Option(help="Folder of what is written. Default: that of the run.")]


def anomaly_command(
    run: RunArgument,
    foreign: Annotated[list[str], typer.Argument(help="Data sets to tell from the run's own; see docs/data.md.")],
    data: DataOption = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Take only the first so many images of each set.")] = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """How well a flow tells held-out images of its own data set from others, at each scale (AUROC).

    1 is always, 0.5 is guessing. Below 0.5 foreign images are likelier than its own: the known failure of likelihoods,
    with simple images under a flow of complex ones. Typicality, how far a likelihood is from the usual one, has no such
    preference.

    Example: [bold]pnf anomaly runs/table1/fashion-mnist-dense/bounded data/MNIST[/bold]
    """
    table = anomaly(run, foreign, data=data, limit=limit, out=run if out is None else out, seed=seed, device=device)
    for name, measures in table["auroc"].items():
        title = f"AUROC: {table['images']:,} images of {table['own']} against {table['foreign'][name]:,} of {name}"
        _print_table(title, "score", {MEASURES[measure]: stages for measure, stages in measures.items()}, ".3f")


def quality_command(
    run: RunArgument,
    n: Annotated[int, typer.Option("-n", "--number", min=2, help="How many held-out images.")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="Upscalings of each image whose mean is taken.")] = 16,
    data: DataOption = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """How close held-out images come that were downscaled: PSNR and SSIM from each resolution, beside filters.

    Zero noise after downscaling is the projection, and its root mean square error that of the projection.

    Example: [bold]pnf quality runs/table1/mnist-dense/bounded[/bold]
    """
    table = quality(run, n=n, draws=draws, data=data, out=run if out is None else out, seed=seed, device=device)
    for measure, digits in (("psnr", ".2f"), ("ssim", ".4f"), ("rmse", ".4f")):
        rows: dict[str, dict[str, float]] = {}
        for resolution, methods in table["quality"].items():
            for method, values in methods.items():
                rows.setdefault(method, {})[resolution] = values[measure]
        title = f"{measure.upper()} of {table['images']:,} images of {table['data']}, upscaled to {table['size']} from"
        _print_table(title, "method", rows, digits)


def anomaly(
    run: Path, foreign: list[str], *, data: str | None, limit: int | None, out: Path, seed: int, device: str
) -> dict[str, Any]:
    """Write ``anomaly.json`` and ``anomaly.png`` of a run; what is in the former."""
    targets = _targets(out, ANOMALY, "anomaly.png")
    config, flow = load_any(run, device)
    own = load_images(config, "test", run=run, data=data, limit=limit)
    sets = [own, *(load_images(config, "test", data=source, limit=limit) for source in foreign)]
    labels = [images.name for images in sets]
    if len(set(labels)) < len(labels):
        raise RunError(f"two of the data sets have the same name: {', '.join(labels)}")
    typical = typical_images(config, load_images(config, "train", run=run, data=data, limit=config.limit))

    def log_probs(images: Images) -> torch.Tensor:
        return stage_log_probs(flow, images, seed=seed, track=progress(f"Evaluating {images.name}"))

    familiar = log_probs(typical)
    judged = dict(zip(labels, (log_probs(images) for images in sets), strict=True))
    names = stage_names(flow)
    scored = {label: scores(values, familiar, names) for label, values in judged.items()}
    document = {
        "own": own.name,
        "images": len(own),
        "foreign": {images.name: len(images) for images in sets[1:]},
        "typical_images": len(typical),
        "seed": seed,
        "auroc": {
            label: {
                measure: {
                    stage: auroc(values, scored[label][measure][stage])
                    for stage, values in scored[own.name][measure].items()
                }
                for measure in MEASURES
            }
            for label in labels[1:]
        },
    }
    panels = {
        label: {
            f"{name} of {_resolution(flow, index)}": bits_per_dim(value, dims)
            for index, (name, value, dims) in enumerate(zip(names, values.unbind(1), stage_dims(flow), strict=True))
        }
        | ({"image": bits_per_dim(values.sum(1), flow.dims)} if len(names) > 1 else {})
        for label, values in judged.items()
    }
    title = f"Bits/dim by stage, under a flow trained on {own.name}"
    _write(targets, document, figures.likelihoods(panels, title=title))
    return document


@torch.no_grad()
def quality(run: Path, *, n: int, draws: int, data: str | None, out: Path, seed: int, device: str) -> dict[str, Any]:
    """Write ``quality.json``, ``quality.png`` and ``quality-images.png`` of a run; what is in the first."""
    targets = _targets(out, QUALITY, "quality.png", "quality-images.png")
    config, flow = load_progressive(run, device)
    images = load_images(config, "test", run=run, data=data)
    check_images(flow, images)
    order = torch.randperm(len(images), generator=seeded(seed))[:n]
    device_of = next(flow.parameters()).device
    # The middle of the interval that each level stands for: noise would be an error that nothing can undo.
    x = ((images.pixels[order].float() + 0.5) / 256).to(device_of)
    found = upscaling_quality(flow, progress("Upscaling")(x.split(BATCH)), draws=draws, seed=seed)
    resolutions = {name: _resolution(flow, index) for index, name in enumerate(flow.stage_names)}
    document = {
        "data": images.name,
        "images": len(x),
        "size": _resolution(flow, len(flow.stages) - 1),
        "draws": draws,
        "seed": seed,
        "quality": {
            resolutions[name]: {method: asdict(values) for method, values in methods.items()}
            for name, methods in found.items()
        },
    }
    panels: dict[str, dict[str, dict[str, tuple[float, float]]]] = {"PSNR, dB": {}, "SSIM": {}}
    for name, methods in found.items():
        for method, values in methods.items():
            panels["PSNR, dB"].setdefault(method, {})[resolutions[name]] = values.psnr, values.psnr_error
            panels["SSIM"].setdefault(method, {})[resolutions[name]] = values.ssim, values.ssim_error
    title = f"Held-out images of {images.name}, downscaled and upscaled to {document['size']}; {draws} draws"
    shown = x[:6]
    low = flow.encode(shown)
    columns = {"downscaled": low, **upscaled(flow, low, draws, seeded(seed)), "real": shown}
    _write(targets, document, figures.by_resolution(panels, title=title), figures.comparison(columns, title=title))
    return document


def _resolution(flow: Flow, stage: int) -> str:
    shape = flow.stage_shapes[stage] if isinstance(flow, ProgressiveFlow) else flow.shape
    return f"{shape[-2]}x{shape[-1]}"


def _print_table(title: str, first: str, rows: dict[str, dict[str, float]], digits: str) -> None:
    columns = max((list(row) for row in rows.values()), key=len)
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for label, row in rows.items():
        table.add_row(label, *(f"{row[column]:{digits}}" if column in row else "" for column in columns))
    console.print(table)


def _targets(out: Path, *names: str) -> list[Path]:
    targets = [out / name for name in names]
    check_targets(targets)
    return targets


def _write(targets: list[Path], document: dict[str, Any], *pictures: Figure) -> None:
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    replace_json(targets[0], document)
    for path, picture in zip(targets[1:], pictures, strict=True):
        figures.save(picture, path)
    console.say(*(f"Written: {path}" for path in targets))
