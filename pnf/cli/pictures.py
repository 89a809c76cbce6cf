"""``pnf sample``, ``pnf upscale`` and ``pnf project``."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from pnf import figures
from pnf.cli.common import (
    DataOption,
    DeviceOption,
    OptionalRunArgument,
    PretrainedOption,
    RunArgument,
    SeedOption,
    console,
    load_any,
    load_images,
    load_progressive,
    pick_device,
    pick_run,
)
from pnf.cli.files import check_targets, png, read_image, write_image
from pnf.data import dequantize
from pnf.flows import ProgressiveFlow
from pnf.flows.memory import peak_memory
from pnf.training import RunConfig, RunError, processes, seeded
from pnf.training.evaluation import check_images
from pnf.training.machine import free_memory
from pnf.training.memory import GIB

BATCH = 256

LARGE = 2**20
"""Entries of images, of which fewer fit into any machine's memory, so that no time is spent on finding out."""

TemperatureOption = Annotated[
    float, typer.Option(min=0, max=10, help="Scale of the noise; 0 is the paper's zero noise.")
]


@torch.no_grad()
def sample_command(
    run: OptionalRunArgument = None,
    pretrained: PretrainedOption = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=10000, help="How many.")] = 64,
    temperature: TemperatureOption = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="Picture. Default: samples.png in the run, or here with --pretrained.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """A grid of images drawn from a trained flow.

    Example: [bold]pnf sample runs/demo/pnf -n 64 --temperature 0.8[/bold]
    Example: [bold]pnf sample --pretrained fashion-mnist[/bold]
    """
    run, here = pick_run(run, pretrained)
    config, flow = load_any(run, device)
    target = png(out, here / "samples.png")
    generator = torch.Generator().manual_seed(seed)
    counts = [min(BATCH, n - start) for start in range(0, n, BATCH)]
    limit = free_memory(pick_device(device)) if counts[0] * flow.dims > LARGE else None
    own = {}
    for i, count in enumerate(counts):
        if i % processes.size() == processes.rank():
            try:
                own[i] = flow.sample(count, temperature=temperature, generator=generator, max_memory=limit).cpu()
            except ValueError as error:
                raise RunError(f"the images are too large for the memory that is free: {error}") from None
        else:
            torch.randn(count, flow.dims, generator=generator)  # so that the noise does not depend on the processes
    x = torch.cat(processes.gather_parts(own))
    if processes.rank():
        return
    name = "PNF" if config.model == "progressive" else "RealNVP"
    title = f"{n} samples of {name}, temperature {temperature:g}"
    figures.save(figures.image_grid(x, title=title), target)
    console.say(f"Written: {target}")


@torch.no_grad()
def upscale_command(
    run: OptionalRunArgument = None,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images: of a stage's resolution they grow from there; others go down and up again."),
    ] = None,
    pretrained: PretrainedOption = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="Start from images that the base flow draws.")] = False,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=64, help="Rows, where no files are given.")] = 6,
    temperature: Annotated[
        list[float] | None,
        typer.Option(min=0, max=10, help="Repeat for several. One, and no --draws: a column for each stage."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, max=16, help="Draws at each temperature.")] = 1,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pictures. Default: that of the run, or here with --pretrained.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Low-resolution images on their way up, each stage a column (the paper's Figures 2 to 4).

    Without files, held-out images of the run's data set go down and up again (Figure 4); with --sampled, images of the
    base flow go up (Figures 2 and 3). Files are also written upscaled, one PNG for each draw.

    Example: [bold]pnf upscale runs/demo/pnf photo.png --temperature 0.7 --draws 3[/bold]
    """
    if pretrained is not None:
        # Then the first of the arguments is no run, but a file.
        run, files = None, [file for file in (run, *(files or ())) if file is not None]
    if files and sampled:
        raise RunError("--sampled and files exclude each other")
    stems = [file.stem for file in files or ()]
    if len(set(stems)) < len(stems):
        raise RunError("two of the files have the same name, and so would their pictures: upscale them one by one")
    run, here = pick_run(run, pretrained)
    config, flow = load_progressive(run, device)
    if len(flow.stages) == 1:
        raise RunError(f"the flow in {run} has one stage, and no lower resolution to start from")
    temperatures = temperature or [0.0]
    folder = out if out is not None else here
    generator = torch.Generator().manual_seed(seed)
    by_stage = len(temperatures) == 1 and draws == 1
    _check_memory(flow, 1 if files else n, device)
    if files:
        drawn = _draws(temperatures, draws)
        names = [*(name for name, _ in drawn), "upscaled"]
        targets = [[folder / f"{file.stem}-{name}.png" for name in names] for file in files]
        check_targets([target for of_file in targets for target in of_file], files)
        images = [_low_resolution(flow, file, device) for file in files]
        for (low, real), (*single, together) in zip(images, targets, strict=True):
            # The same seed and order, so that the files hold what the picture shows.
            generator.manual_seed(seed)
            for (_, scale), target in zip(drawn, single, strict=True):
                noise = None if scale else 0
                write_image(flow.upsample(low, noise=noise, temperature=scale, generator=generator)[0], target)
            zero_noise = by_stage and temperatures[0] == 0
            _picture(flow, low, real, temperatures, draws, zero_noise, generator.manual_seed(seed), together)
        console.say(*(f"Written: {target}" for of_file in targets for target in of_file))
        return
    target = png(None, folder / f"upscaled-{'samples' if sampled else 'real'}.png")
    if sampled:
        base, real = flow.downsample(flow.sample(n, generator=generator), len(flow.stages) - 1), None
    else:
        real = _held_out(flow, run, config, data, n, seed).to(pick_device(device))
        base = flow.encode(real)
    _picture(flow, base, real, temperatures, draws, by_stage, generator, target)
    console.say(f"Written: {target}")


@torch.no_grad()
def project_command(
    run: RunArgument,
    files: Annotated[list[Path] | None, typer.Argument(help="Images. Default: held-out images of the run.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, max=64, help="How many, where no files are given.")] = 8,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Picture. Default: projection.png in the run.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Images, their low-resolution codes, and their projections onto the manifold of the decoder.

    Example: [bold]pnf project runs/demo/pnf -n 8[/bold]
    """
    config, flow = load_progressive(run, device)
    target = png(out, run / "projection.png", files or ())
    if files:
        x = torch.cat([read_image(file, flow.shape, exact=False) for file in files]).to(pick_device(device))
    else:
        x = _held_out(flow, run, config, data, n, seed).to(pick_device(device))
    _check_memory(flow, len(x), device)
    code = flow.encode(x)
    projected = flow.decode(code)
    again = (flow.project(projected) - projected).abs().max().item()
    figures.save(figures.projection(x.cpu(), code.cpu(), projected.cpu()), target)
    error = (projected - x).square().mean().sqrt().item()
    console.say(f"Root mean square error of the projection: {error:.4f}; projecting again moves it by {again:.1e}")
    console.say(f"Written: {target}")


def _check_memory(flow: ProgressiveFlow, n: int, device: str) -> None:
    """Raise if so many images cannot be upscaled at once."""
    if n * flow.dims <= LARGE:
        return
    needed = peak_memory(lambda: flow.inverse(torch.empty(n, flow.dims)))
    free = free_memory(pick_device(device))
    if needed > free:
        raise RunError(
            f"upscaling {n} images to {list(flow.shape)} takes about {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB "
            "are free: give fewer"
        )


def _held_out(flow: ProgressiveFlow, run: Path, config: RunConfig, data: str | None, n: int, seed: int) -> Tensor:
    images = load_images(config, "test", run=run, data=data)
    check_images(flow, images)
    order = torch.randperm(len(images), generator=seeded(seed))[:n]
    return dequantize(images.pixels[order], seeded(seed, 1))


def _low_resolution(flow: ProgressiveFlow, file: Path, device: str) -> tuple[Tensor, Tensor | None]:
    """The image to start from, and the real one if the file has the full resolution or more."""
    x = read_image(file, flow.shape, exact=True, sizes=[shape[1:] for shape in flow.stage_shapes]).to(
        pick_device(device)
    )
    if tuple(x.shape[1:]) != flow.shape:
        return x, None
    return flow.encode(x), x


def _picture(
    flow: ProgressiveFlow,
    low: Tensor,
    real: Tensor | None,
    temperatures: list[float],
    draws: int,
    by_stage: bool,
    generator: torch.Generator,
    target: Path,
) -> None:
    if by_stage:
        figure = figures.upscaling_pipeline(flow, low, temperature=temperatures[0], reference=real, generator=generator)
    else:
        figure = figures.upscaling_draws(
            flow, low, temperatures=temperatures, draws=draws, reference=real, generator=generator
        )
    figures.save(figure, target)


def _draws(temperatures: list[float], draws: int) -> list[tuple[str, float]]:
    """The name of each draw, which tells any two temperatures apart, and its temperature."""
    named = [(f"{t:g}" if float(f"{t:g}") == t else repr(t), t) for t in temperatures]
    return [(f"t{name}-{draw + 1}", t) for name, t in named for draw in range(draws if t else 1)]
