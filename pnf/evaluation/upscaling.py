"""Quality of upscaled images, compared with the real ones."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pnf import figures
from pnf.data.images import Progress
from pnf.evaluation.image_files import chart, check_targets
from pnf.evaluation.likelihood import check_images
from pnf.evaluation.reports import Written, resolution, write_report
from pnf.evaluation.runs import load_images, load_progressive
from pnf.flows import ProgressiveFlow
from pnf.training.batches import Batch, seeded
from pnf.training.config import RunError

QUALITY = "quality.json"

SSIM_SIZE = 11
"""Height and width of SSIM's window, and so of the smallest images."""

BATCH = 100


@dataclass(frozen=True)
class Quality:
    """The likeness of upscaled images to the real ones.

    Attributes:
        psnr: the mean over images of the peak signal-to-noise ratio, ``-10 log10 MSE`` in dB, each at most 100.
        psnr_error: its standard error.
        ssim: the mean structural similarity.
        ssim_error: its standard error.
        rmse: the root mean square error over all pixels. With zero noise it is the error of the projection.
    """

    psnr: float
    psnr_error: float
    ssim: float
    ssim_error: float
    rmse: float


@torch.no_grad()
def upscaled(
    flow: ProgressiveFlow,
    low: Tensor,  # [B, C, h, w]
    draws: int,
    generator: torch.Generator,
    condition: Tensor | None = None,  # [B]
) -> dict[str, Tensor]:
    """Upscale images to full resolution ``[B, *flow.shape]`` by two filters and by the flow."""
    size = flow.shape[1:]
    drawn = [flow.upsample(low, condition=condition, generator=generator).clamp(0, 1) for _ in range(draws)]
    return {
        "bilinear": functional.interpolate(low, size, mode="bilinear"),
        "bicubic": functional.interpolate(low, size, mode="bicubic").clamp(0, 1),
        "zero noise": flow.upsample(low, noise=0, condition=condition).clamp(0, 1),
        "mean of draws": torch.stack(drawn).mean(0),
    }


def upscaling_quality(
    flow: ProgressiveFlow,
    batches: Iterable[Batch],  # of [B, *flow.shape]
    *,
    draws: int,
    seed: int = 0,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, dict[str, Quality]]:
    """Downscale images to each lower resolution, upscale them by each method, and compare: quality by stage and method.

    Args:
        flow: a flow in evaluation mode, for images of at least 11 x 11 pixels.
        batches: images in [0, 1], with their labels if the flow takes them.
        draws: the number of upscalings in the mean of draws.
        seed: the seed of the draws.
        track: wraps the iterable over the batches and stages, for a progress bar.

    Raises:
        RunError: the images are too small for SSIM, or the flow has only one stage.
    """
    if len(flow.stages) == 1:
        raise RunError("the flow has one stage, and no lower resolution to start from")
    if min(flow.shape[1:]) < SSIM_SIZE:
        raise RunError(f"SSIM compares images of at least {SSIM_SIZE} x {SSIM_SIZE} pixels, got {list(flow.shape)}")
    # Imported on first use, since it takes a second.
    from torchmetrics.functional.image import structural_similarity_index_measure

    generator = seeded(seed)
    errors: dict[str, dict[str, list[Tensor]]] = {}
    for (x, condition), (k, name) in track(list(product(batches, enumerate(flow.stage_names[:-1])))):
        low = flow.downsample(x, len(flow.stages) - 1 - k)
        for method, image in upscaled(flow, low, draws, generator, condition).items():
            mse = (image - x).square().flatten(1).mean(1)
            ssim = structural_similarity_index_measure(
                image, x, kernel_size=SSIM_SIZE, data_range=1.0, reduction="none"
            )
            assert isinstance(ssim, Tensor)
            errors.setdefault(name, {}).setdefault(method, []).append(torch.stack((mse, ssim.reshape(-1))).double())
    return {
        name: {method: _quality(*torch.cat(parts, 1).cpu()) for method, parts in methods.items()}
        for name, methods in errors.items()
    }


def _quality(
    mse: Tensor,  # [N]
    ssim: Tensor,  # [N]
) -> Quality:
    psnr = -10 * mse.clamp(min=1e-10).log10()
    root = len(mse) ** 0.5
    return Quality(
        psnr=psnr.mean().item(),
        psnr_error=psnr.std().item() / root,
        ssim=ssim.mean().item(),
        ssim_error=ssim.std().item() / root,
        rmse=mse.mean().sqrt().item(),
    )


@torch.no_grad()
def quality(
    run: Path,
    out: Path,
    *,
    n: int = 500,
    draws: int = 16,
    data: str | None = None,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress],
) -> Written:
    """Measure the quality of upscaling: ``quality.json``, ``quality.png`` and ``quality-images.png``.

    Args:
        run: the folder of the run.
        out: the folder for the results, or a picture in it.
        n: the number of held-out images.
        draws: the number of upscalings in the mean of draws.
        data: a data set in place of the run's own.
        seed: the seed of the choice of images and of the draws.
        device: the device of the flow.
        progress: makes a progress bar with a description.

    Raises:
        RunError: the run does not exist, or the images are too small for SSIM.
    """
    picture = chart(out, "quality")
    targets = [picture.parent / QUALITY, picture, picture.with_stem(f"{picture.stem}-images")]
    check_targets(targets)
    config, flow = load_progressive(run, device)
    images = load_images(config, "test", run=run, data=data, progress=progress)
    check_images(flow, images)
    images = images.take(torch.randperm(len(images), generator=seeded(seed))[:n])
    # The middle of each level's interval: dequantization noise would be an error that no upscaling can undo.
    x = ((images.stored.float() + 0.5) / 256).to(device)
    condition = None if images.labels is None else images.labels.to(device)
    batches = Batch(x, condition).split(BATCH)
    found = upscaling_quality(flow, batches, draws=draws, seed=seed, track=progress("Upscaling"))
    resolutions = {name: resolution(flow, index) for index, name in enumerate(flow.stage_names)}
    document = {
        "data": images.name,
        "images": len(x),
        "size": resolution(flow, len(flow.stages) - 1),
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
    shown, given = Batch(x, condition).split(6)[0]
    low = flow.encode(shown)
    columns = {"downscaled": low, **upscaled(flow, low, draws, seeded(seed), given), "real": shown}
    models = dict.fromkeys(("zero noise", "mean of draws"), flow.detail)
    pictures = figures.by_resolution(panels, title=title, models=models), figures.comparison(columns, title=title)
    write_report(targets, document, *pictures)
    return Written(targets, document)
