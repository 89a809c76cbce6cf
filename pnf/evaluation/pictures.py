"""Pictures of the images that a trained flow makes: samples, upscaled images, projections."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pnf import figures
from pnf.data import dequantize
from pnf.data.images import Progress
from pnf.evaluation.image_files import check_targets, png, read_image, write_image
from pnf.evaluation.likelihood import check_images
from pnf.evaluation.runs import load_images, load_only, load_progressive
from pnf.flows import ProgressiveFlow
from pnf.flows.peak_memory import peak_memory
from pnf.training import processes
from pnf.training.batches import seeded
from pnf.training.config import RunConfig, RunError
from pnf.training.hardware import free_memory
from pnf.training.memory_check import GIB

BATCH = 256

LARGE = 2**20
"""Entries of a batch of images. Fewer always fit into memory, so the estimate of the peak is skipped."""


@torch.no_grad()
def samples(
    run: Path, target: Path, *, n: int = 64, temperature: float = 1.0, seed: int = 0, device: torch.device
) -> list[Path]:
    """Draw a grid of samples from the flow of a run. The processes of torchrun share them.

    Args:
        run: the folder of the run, or of a model that comes with pnf.
        target: the picture.
        n: the number of samples.
        temperature: the scale of the noise.
        seed: the seed of the noise.
        device: the device of the flow.

    Returns:
        The files written; none on processes other than the first.

    Raises:
        RunError: the run does not exist, the picture cannot be written, or the images do not fit into memory.
    """
    config, flow = load_only(run, device)
    target = png(target)
    generator = torch.Generator().manual_seed(seed)
    counts = [min(BATCH, n - start) for start in range(0, n, BATCH)]
    limit = free_memory(device) if counts[0] * flow.dims > LARGE else None
    own = {}
    for i, count in enumerate(counts):
        if i % processes.size() == processes.rank():
            try:
                own[i] = flow.sample(count, temperature=temperature, generator=generator, max_memory=limit).cpu()
            except ValueError as error:
                raise RunError(f"the images are too large for the memory that is free: {error}") from None
        else:
            torch.randn(count, flow.dims, generator=generator)  # the noise must not depend on the processes
    x = torch.cat(processes.gather_parts(own))
    if processes.rank():
        return []
    name = "PNF" if config.model == "progressive" else "RealNVP"
    figures.save(figures.image_grid(x, title=f"{n} samples of {name}, temperature {temperature:g}"), target)
    return [target]


@torch.no_grad()
def upscaled(
    run: Path,
    folder: Path,
    *,
    files: Sequence[Path] = (),
    sampled: bool = False,
    n: int = 6,
    temperatures: Sequence[float] = (0.0,),
    draws: int = 1,
    data: str | None = None,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress],
) -> list[Path]:
    """Upscale low-resolution images: one column for each stage, or draws at several temperatures.

    Args:
        run: the folder of the run, or of a model that comes with pnf.
        folder: the folder for the pictures.
        files: images to start from. Each gets a picture, and a PNG of every draw. Without files, held-out images of the
            run's data set are downscaled and upscaled again.
        sampled: whether to start from samples of the base flow instead.
        n: the number of rows without files.
        temperatures: scales of the noise. One temperature with one draw shows every stage.
        draws: the number of draws at each temperature.
        data: a data set in place of the run's own.
        seed: the seed of everything random.
        device: the device of the flow.
        progress: makes a progress bar with a description.

    Returns:
        The files written.

    Raises:
        RunError: the run does not exist, the flow cannot start from an image, or a file cannot be written.
        DataError: a file is no readable image.
    """
    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        raise RunError("two of the files have the same name, and so would their pictures: upscale them one by one")
    config, flow = load_progressive(run, device)
    if len(flow.stages) == 1:
        raise RunError(f"the flow in {run} has one stage, and no lower resolution to start from")
    generator = torch.Generator().manual_seed(seed)
    by_stage = len(temperatures) == 1 and draws == 1
    _check_memory(flow, 1 if files else n, device)
    if files:
        drawn = _draws(temperatures, draws)
        names = [*(name for name, _ in drawn), "upscaled"]
        targets = [[folder / f"{file.stem}-{name}.png" for name in names] for file in files]
        written = [target for of_file in targets for target in of_file]
        check_targets(written, files)
        images = [_low_resolution(flow, file, device) for file in files]
        for (low, real), (*single, together) in zip(images, targets, strict=True):
            # With the same seed and order, the files hold the same images as the picture.
            generator.manual_seed(seed)
            for (_, scale), target in zip(drawn, single, strict=True):
                noise = None if scale else 0
                write_image(flow.upsample(low, noise=noise, temperature=scale, generator=generator)[0], target)
            zero_noise = by_stage and temperatures[0] == 0
            _picture(flow, low, real, temperatures, draws, zero_noise, generator.manual_seed(seed), together)
        return written
    target = png(folder / f"upscaled-{'samples' if sampled else 'real'}.png")
    if sampled:
        base, real = flow.downsample(flow.sample(n, generator=generator), len(flow.stages) - 1), None
    else:
        real = _held_out(flow, run, config, data, n, seed, progress).to(device)
        base = flow.encode(real)
    _picture(flow, base, real, temperatures, draws, by_stage, generator, target)
    return [target]


class Projection(NamedTuple):
    """The picture of :func:`projected`.

    Attributes:
        file: the picture.
        error: the root mean square error of the projection.
        again: the largest change of a pixel under a second projection.
    """

    file: Path
    error: float
    again: float


@torch.no_grad()
def projected(
    run: Path,
    target: Path,
    *,
    files: Sequence[Path] = (),
    n: int = 8,
    data: str | None = None,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress],
) -> Projection:
    """Draw images, their low-resolution codes and their projections. Arguments and errors as in :func:`upscaled`."""
    config, flow = load_progressive(run, device)
    target = png(target, files)
    if files:
        x = torch.cat([read_image(file, flow.shape, exact=False) for file in files]).to(device)
    else:
        x = _held_out(flow, run, config, data, n, seed, progress).to(device)
    _check_memory(flow, len(x), device)
    code = flow.encode(x)
    back = flow.decode(code)
    again = (flow.project(back) - back).abs().max().item()
    figures.save(figures.projection(x.cpu(), code.cpu(), back.cpu()), target)
    return Projection(target, (back - x).square().mean().sqrt().item(), again)


def _check_memory(flow: ProgressiveFlow, n: int, device: torch.device) -> None:
    """Raise if the memory is too small to upscale n images at once."""
    if n * flow.dims <= LARGE:
        return
    needed = peak_memory(lambda: flow.inverse(torch.empty(n, flow.dims)))
    free = free_memory(device)
    if needed > free:
        raise RunError(
            f"upscaling {n} images to {list(flow.shape)} takes about {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB "
            "are free: give fewer"
        )


def _held_out(
    flow: ProgressiveFlow,
    run: Path,
    config: RunConfig,
    data: str | None,
    n: int,
    seed: int,
    progress: Callable[[str], Progress],
) -> Tensor:
    images = load_images(config, "test", run=run, data=data, progress=progress)
    check_images(flow, images)
    order = torch.randperm(len(images), generator=seeded(seed))[:n]
    return dequantize(images.pixels[order], seeded(seed, 1))


def _low_resolution(flow: ProgressiveFlow, file: Path, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The image to start from, and the real one if the file has at least full resolution."""
    x = read_image(file, flow.shape, exact=True, sizes=[shape[1:] for shape in flow.stage_shapes]).to(device)
    if tuple(x.shape[1:]) != flow.shape:
        return x, None
    return flow.encode(x), x


def _picture(
    flow: ProgressiveFlow,
    low: Tensor,
    real: Tensor | None,
    temperatures: Sequence[float],
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


def _draws(temperatures: Sequence[float], draws: int) -> list[tuple[str, float]]:
    """The name of each draw, different for any two temperatures, and its temperature."""
    named = [(f"{t:g}" if float(f"{t:g}") == t else repr(t), t) for t in temperatures]
    return [(f"t{name}-{draw + 1}", t) for name, t in named for draw in range(draws if t else 1)]
