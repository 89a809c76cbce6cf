"""``pnf check``."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    JsonOption,
    SeedOption,
    console,
    notes,
    pick_device,
    print_json,
    progress,
    summarise,
)
from pnf.data import dequantize, load
from pnf.evaluation import Diagnostic, diagnose
from pnf.evaluation.likelihood import check_images, num_classes
from pnf.evaluation.runs import is_real, load_flow, load_images, load_only
from pnf.flows.saving import CONFIG_NAME
from pnf.training import Flow, RunConfig, RunError, seeded
from pnf.training.batches import Batch


def check_command(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of a flow that save_pretrained wrote.")],
    data: DataOption = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=1000, help="Number of images.")] = 16,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Check that a trained flow is finite, invertible, normalised and a projection. The exit status is 1 if not.

    The images are held-out ones of the run's data set or of --data. Without either they are samples of the flow, of
    each class in turn if it has labels.

    Example: pnf check runs/demo/pnf
    """
    config: RunConfig | None = None
    if (model / CONFIG_NAME).is_file():
        flow = load_flow(model).to(pick_device(device))
    else:
        config, flow = load_only(model, pick_device(device))
    x, condition = _images(flow, model, config, data, n, seed)
    x, condition = x.to(pick_device(device)), None if condition is None else condition.to(pick_device(device))
    checks = diagnose(flow, x, condition, seed=seed, track=progress("Checking stages"))
    if json:
        # JSON has no NaN, which is what a check that was left out has measured.
        finite = {each.name: each.measured if math.isfinite(each.measured) else None for each in checks}
        print_json(
            {"checks": [asdict(each) | {"measured": finite[each.name], "passed": each.passed} for each in checks]}
        )
    else:
        _print_table(checks)
    failed = [each.name for each in checks if not each.passed]
    if failed:
        raise RunError(f"{model} fails: {', '.join(failed)}")
    left_out = sum(each.bound is None for each in checks)
    note = f", {left_out} left out: their Jacobians are too large" if left_out else ""
    (notes if json else console).say(f"{model}: every check holds{note}")
    if config is not None:
        summarise((), "pnf", "evaluate", model)


def _print_table(checks: list[Diagnostic]) -> None:
    table = Table()
    for column in ("check", "measured", "at most", "verdict"):
        table.add_column(column, justify="right" if column in ("measured", "at most") else "left")
    for each in checks:
        verdict = "left out" if each.bound is None else "holds" if each.passed else "FAILS"
        numbers = ("", "") if each.bound is None else (f"{each.measured:.1e}", f"{each.bound:.1e}")
        table.add_row(each.name, *numbers, verdict, style=None if each.passed else "bold red")
    console.show(table)


def _images(flow: Flow, run: Path, config: RunConfig | None, data: str | None, n: int, seed: int) -> Batch:
    """``[n, *shape]`` in [0, 1], with labels if the flow takes them."""
    classes = num_classes(flow)
    if classes is None and flow.condition_shape is not None:
        raise RunError(f"the flow is conditioned on {list(flow.condition_shape)}; only labels can be checked")
    if config is None and data is None:
        device = next(flow.parameters()).device
        labels = torch.arange(n, device=device) % classes if classes else None
        samples = flow.sample(n, labels, generator=torch.Generator().manual_seed(seed))
        if is_real(flow):
            return Batch(samples, labels)
        pixels = (256 * samples).clamp(0, 255).byte()
        return Batch(dequantize(pixels, seeded(seed)), labels)
    if config is not None:
        images = load_images(config, "test", run=run, data=data, limit=n, progress=progress)
    elif is_real(flow) or classes:
        how = "labelled" if classes else "standardised"
        raise RunError(f"--data must be {how} as in training, and only a run knows how: give the run's folder")
    else:
        assert data is not None
        if len(flow.shape) != 3:
            raise RunError(f"--data must be images, and the model is of vectors {list(flow.shape)}")
        images = load(data, "test", (flow.shape[1], flow.shape[2]), limit=n)
    check_images(flow, images)
    return Batch(images.continuous(seeded(seed)), images.labels)
