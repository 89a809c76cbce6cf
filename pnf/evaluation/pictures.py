"""Pictures of the images that a trained flow makes: samples, upscaled images, projections."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pnf import figures
from pnf.data.images import Progress, brief_list
from pnf.evaluation.image_files import check_targets, npz, picture, read_image, write_image
from pnf.evaluation.likelihood import check_images
from pnf.evaluation.runs import class_counts, load_images, load_only, load_progressive, pick_labels
from pnf.files import replace_file
from pnf.flows import ProgressiveFlow
from pnf.flows.peak_memory import MemoryLimitError, peak_memory
from pnf.training import processes
from pnf.training.batches import seeded
from pnf.training.config import RunConfig, RunError
from pnf.training.hardware import free_memory
from pnf.training.memory_check import GIB

BATCH = 256

LARGE = 2**20
"""Entries of a batch of images. Fewer always fit into memory, so the estimate of the peak is skipped."""


MOST_ROWS = 20
"""The most classes of a grid of samples that names none."""


@torch.no_grad()
def samples(
    run: Path,
    target: Path,
    *,
    n: int | None = None,
    labels: Sequence[str] = (),
    temperature: float = 1.0,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress] | None = None,
) -> list[Path]:
    """Draw a grid of samples from the flow of a run. The processes of torchrun share them.

    If the run has labels, each of several classes is a row. Samples of real data are an ``.npz`` with one array,
    ``samples``, in the units of the data and in float64.

    Args:
        run: the folder of the run, or of a model that comes with pnf.
        target: the picture, or the ``.npz``.
        n: the number of samples, by default 64; or that of each of several classes, by default 8.
        labels: the classes, by name or number. By default the first ``MOST_ROWS`` that have training images.
        temperature: the scale of the noise.
        seed: the seed of the noise.
        device: the device of the flow.
        progress: makes a progress bar with a description.

    Returns:
        The files written; none on processes other than the first.

    Raises:
        RunError: the run does not exist, the file cannot be written, or the samples do not fit into memory.
    """
    config, flow = load_only(run, device)
    target = picture(target) if config.standardisation is None else npz(target)
    names: list[str] = []
    condition: Tensor | None = None
    chosen = pick_labels(config, labels) if labels else _trained_classes(config, run)
    if config.classes is not None:
        n = n or (8 if len(chosen) > 1 else 64)
        names = [config.classes[number] for number in chosen]
        condition = torch.tensor(chosen).repeat_interleave(n)
    total = n or 64 if condition is None else len(condition)
    generator = torch.Generator().manual_seed(seed)
    counts = [min(BATCH, total - start) for start in range(0, total, BATCH)]
    conditions = [None] * len(counts) if condition is None else condition.to(device).split(BATCH)
    limit = free_memory(device) if counts[0] * flow.dims > LARGE else None
    own = {}
    how: dict[str, Any] = {"temperature": temperature, "generator": generator, "max_memory": limit}
    track = iter if progress is None else progress("Sampling")
    for i, (count, given) in track(list(enumerate(zip(counts, conditions, strict=True)))):
        if i % processes.size() == processes.rank():
            try:
                own[i] = flow.sample(count, given, **how).cpu()
            except MemoryLimitError as error:
                raise RunError(f"the images are too large for the memory that is free: {error}") from None
        else:
            torch.randn(count, flow.dims, generator=generator)  # the noise must not depend on the processes
    x = torch.cat(processes.gather_parts(own))
    if processes.rank():
        return []
    if config.standardisation is not None:
        content = io.BytesIO()
        np.savez(content, samples=config.standardisation.invert(x.double()).numpy())
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content.getvalue())
        return [target]
    name = "PNF" if config.model == "progressive" else "RealNVP"
    of_class = f" of {names[0]}" if len(names) == 1 else ""
    title = f"{total} sample{'' if total == 1 else 's'}{of_class} of {name}, temperature {temperature:g}"
    layout: dict[str, Any] = {"columns": n, "row_titles": names} if len(names) > 1 else {}
    figures.save(figures.image_grid(x, title=title, **layout), target)
    return [target]


def _trained_classes(config: RunConfig, run: Path) -> list[int]:
    """The first classes with training images."""
    counts = class_counts(config, run) or [1] * len(config.classes or ())
    return [number for number, count in enumerate(counts) if count][:MOST_ROWS]


def _conditions(
    config: RunConfig, labels: Sequence[str], n: int, own: Sequence[int], device: torch.device
) -> tuple[Tensor | None, list[str]]:
    """The class of each of n images as the flow takes it, and its name; none without labels.

    Args:
        config: the run's settings.
        labels: the names or numbers of the classes, one for all images or one for each.
        n: the number of images.
        own: the classes to take without names.
        device: the device of the flow.
    """
    if config.classes is None and not labels:
        return None, []
    numbers = pick_labels(config, labels) if labels else list(own)
    assert config.classes is not None
    if not numbers:
        raise RunError(f"the run has labels: give the class with --label: {brief_list(config.classes)}")
    if len(numbers) not in (1, n):
        raise RunError(f"give one --label for all, or one for each of {n} images, got {len(numbers)}")
    numbers = numbers * (n // len(numbers))
    return torch.tensor(numbers, device=device), [config.classes[number] for number in numbers]


@torch.no_grad()
def upscaled(
    run: Path,
    folder: Path,
    *,
    files: Sequence[Path] = (),
    sampled: bool = False,
    labels: Sequence[str] = (),
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
        labels: the classes, by name or number, of a run with labels: one for all rows or one for each. Files need it.
            By default held-out images have their own, and samples have one after the other.
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
        condition, classes = _conditions(config, labels, len(files), (), device)
        for i, ((low, real), (*single, together)) in enumerate(zip(images, targets, strict=True)):
            given = None if condition is None else condition[i : i + 1]
            # With the same seed and order, the files hold the same images as the picture.
            generator.manual_seed(seed)
            for (_, scale), target in zip(drawn, single, strict=True):
                noise = None if scale else 0
                how: dict[str, Any] = {"noise": noise, "temperature": scale, "generator": generator}
                write_image(flow.upsample(low, condition=given, **how)[0], target)
            zero_noise = by_stage and temperatures[0] == 0
            generator.manual_seed(seed)
            of_class = classes[i : i + 1]
            track = progress(f"Upscaling {files[i].name}")
            _picture(flow, low, real, given, of_class, temperatures, draws, zero_noise, generator, together, track)
        return written
    target = picture(folder / f"upscaled-{'samples' if sampled else 'real'}.png")
    if sampled:
        trained = _trained_classes(config, run)
        each = [trained[i % len(trained)] for i in range(n if trained else 0)]
        condition, classes = _conditions(config, labels, n, each, device)
        base, real = flow.downsample(flow.sample(n, condition, generator=generator), len(flow.stages) - 1), None
    else:
        real, own = _held_out(flow, run, config, data, n, seed, progress)
        real = real.to(device)
        condition, classes = _conditions(config, labels, len(real), own, device)
        base = flow.encode(real)
    track = progress("Upscaling")
    _picture(flow, base, real, condition, classes, temperatures, draws, by_stage, generator, target, track)
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
    labels: Sequence[str] = (),
    n: int = 8,
    data: str | None = None,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress],
) -> Projection:
    """Draw images, their low-resolution codes and their projections. Arguments and errors as in :func:`upscaled`."""
    config, flow = load_progressive(run, device)
    target = picture(target, files)
    if files:
        x = torch.cat([read_image(file, flow.shape, exact=False) for file in files])
        own: list[int] = []
    else:
        x, own = _held_out(flow, run, config, data, n, seed, progress)
    x = x.to(device)
    condition, _ = _conditions(config, labels, len(x), own, device)
    _check_memory(flow, len(x), device)
    code = flow.encode(x)
    back = flow.decode(code, condition=condition)
    again = (flow.project(back, condition=condition) - back).abs().max().item()
    figures.save(figures.projection(x.cpu(), code.cpu(), back.cpu()), target)
    return Projection(target, (back - x).square().mean().sqrt().item(), again)


def _check_memory(flow: ProgressiveFlow, n: int, device: torch.device) -> None:
    """Raise if the memory is too small to upscale n images at once."""
    if n * flow.dims <= LARGE:
        return
    condition = torch.zeros(n, dtype=torch.int64) if flow.num_classes else None
    needed = peak_memory(lambda: flow.inverse(torch.empty(n, flow.dims), condition))
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
) -> tuple[Tensor, list[int]]:
    """Some held-out images, and their labels."""
    images = load_images(config, "test", run=run, data=data, progress=progress)
    check_images(flow, images)
    images = images.take(torch.randperm(len(images), generator=seeded(seed))[:n])
    labels: list[int] = [] if images.labels is None else images.labels.tolist()
    return images.continuous(seeded(seed, 1)), labels


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
    condition: Tensor | None,
    classes: Sequence[str],
    temperatures: Sequence[float],
    draws: int,
    by_stage: bool,
    generator: torch.Generator,
    target: Path,
    track: Progress,
) -> None:
    how: dict[str, Any] = {
        "reference": real,
        "condition": condition,
        "generator": generator,
        "row_titles": classes,
        "track": track,
    }
    if by_stage:
        figure = figures.upscaling_pipeline(flow, low, temperature=temperatures[0], **how)
    else:
        figure = figures.upscaling_draws(flow, low, temperatures=temperatures, draws=draws, **how)
    figures.save(figure, target)


def _draws(temperatures: Sequence[float], draws: int) -> list[tuple[str, float]]:
    """The name of each draw, different for any two temperatures, and its temperature."""
    named = [(f"{t:g}" if float(f"{t:g}") == t else repr(t), t) for t in temperatures]
    return [(f"t{name}-{draw + 1}", t) for name, t in named for draw in range(draws if t else 1)]
