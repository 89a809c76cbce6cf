"""``pnf quality``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    SeedOption,
    pick_device,
    print_json,
    print_table,
    progress,
    summarise,
)
from pnf.evaluation.upscaling import quality


def quality_command(
    run: RunArgument,
    n: Annotated[int, typer.Option("-n", "--number", min=2, help="Number of held-out images.")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="Number of upscalings in the mean of draws.")] = 16,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results, or a picture. Default: the run's.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Downscale held-out images, upscale them again, and compare with filters: PSNR and SSIM from each resolution.

    Upscaling with zero noise is the projection, so its root mean square error is the error of the projection.

    Example: pnf quality runs/demo/pnf -n 100
    """
    written = quality(
        run,
        run if out is None else out,
        n=n,
        draws=draws,
        data=data,
        seed=seed,
        device=pick_device(device),
        progress=progress,
    )
    table = written.document
    if json:
        print_json(table)
    else:
        _print_tables(table)
    summarise(written.files, "pnf", "upscale", run, "--temperature", 0.7, "--draws", 3, json=json)


def _print_tables(table: dict[str, Any]) -> None:
    for measure, digits in (("psnr", ".2f"), ("ssim", ".4f"), ("rmse", ".4f")):
        rows: dict[str, dict[str, float]] = {}
        for resolution, methods in table["quality"].items():
            for method, values in methods.items():
                rows.setdefault(method, {})[resolution] = values[measure]
        title = f"{measure.upper()} of {table['images']:,} images of {table['data']}, upscaled to {table['size']} from"
        print_table(title, "method", rows, digits)
