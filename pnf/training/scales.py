"""What the stages of a flow tell beyond its likelihood: which images are foreign to it, and how well it upscales."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.image import structural_similarity_index_measure

from pnf.data import Images
from pnf.flows import ProgressiveFlow
from pnf.training.batches import hold_out, seeded
from pnf.training.config import RunConfig, RunError

SSIM_SIZE = 11
"""Height and width of SSIM's window, and of the smallest images that it can compare."""

ALL = "all"
"""What the score of all stages together is called."""

_TYPICAL = 1000


def typical_images(config: RunConfig, images: Images) -> Images:
    """Training images that a run has not been trained on; the first thousand where it held out none."""
    if not config.validation:
        return Images(images.pixels[:_TYPICAL], images.name, images.split)
    return Images(hold_out(images.pixels, config.validation, config.seed)[1], images.name, images.split)


def scores(
    log_probs: Tensor,  # [N, stages], float64
    typical: Tensor,  # [M, stages], float64
    names: list[str],
) -> dict[str, dict[str, Tensor]]:
    """How little each image stands out, by three measures, of each stage: ``[N]``, higher is more familiar.

    - ``image``: the log-likelihood of the image at the stage's resolution, ``log p(x_[k])``, the sum up to the stage.
    - ``stage``: that of what the stage adds, ``log p(Δ | S) - n log 2``.
    - ``typicality``: minus the distance of the stage's log-likelihood from its mean over typical images; ``all`` takes
      the Mahalanobis distance over the stages, with the covariance over typical images. It has no preference for
      images that are too likely, and so does not share the known failure of likelihoods (Nalisnick et al., "Do deep
      generative models know what they don't know?", 2019): simple images are likely under a flow of complex ones.

    Args:
        log_probs: the share of every stage in the log-likelihood of the images to judge, in nats.
        typical: the same of familiar images, which are not among those to judge.
        names: of the stages.
    """
    centred = log_probs - typical.mean(0)
    covariance = torch.cov(typical.T).reshape(len(names), len(names))
    # Solved by eigenvalues, so that stages that go together in every image leave it finite.
    distances = (centred @ torch.linalg.pinv(covariance, hermitian=True) * centred).sum(1)
    return {
        "image": dict(zip(names, log_probs.cumsum(1).unbind(1), strict=True)),
        "stage": dict(zip(names, log_probs.unbind(1), strict=True)),
        "typicality": dict(zip(names, -centred.abs().T, strict=True)) | {ALL: -distances},
    }


def auroc(own: Tensor, foreign: Tensor) -> float:
    """The probability that an image of one's own scores higher than a foreign one: ``[N]`` and ``[M]`` scores."""
    # As ranks, since torchmetrics takes what leaves [0, 1] for logits, and squashes it until it is equal.
    ranks = torch.unique(torch.cat((own, foreign)), return_inverse=True)[1].double()
    target = torch.cat((torch.ones(len(own), dtype=torch.long), torch.zeros(len(foreign), dtype=torch.long)))
    return float(binary_auroc(ranks / max(1.0, float(ranks.max())), target))


@dataclass(frozen=True)
class Quality:
    """How close upscaled images come to the real ones.

    Attributes:
        psnr: mean over images of the peak signal-to-noise ratio, ``-10 log10 MSE``, in dB; at most 100 for an image.
        psnr_error: its standard error.
        ssim: mean structural similarity.
        ssim_error: its standard error.
        rmse: root of the mean squared error over all pixels; of zero noise, the error of the projection.
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
) -> dict[str, Tensor]:
    """Low-resolution images at full resolution ``[B, *flow.shape]`` by two filters and by the flow."""
    size = flow.shape[1:]
    mean = torch.stack([flow.upsample(low, generator=generator).clamp(0, 1) for _ in range(draws)]).mean(0)
    return {
        "bilinear": functional.interpolate(low, size, mode="bilinear"),
        "bicubic": functional.interpolate(low, size, mode="bicubic").clamp(0, 1),
        "zero noise": flow.upsample(low, noise=0).clamp(0, 1),
        "mean of draws": mean,
    }


def upscaling_quality(
    flow: ProgressiveFlow,
    batches: Iterable[Tensor],  # of [B, *flow.shape]
    *,
    draws: int,
    seed: int = 0,
) -> dict[str, dict[str, Quality]]:
    """How close images come that were downscaled to each resolution below the full one, by stage and method.

    Args:
        flow: in evaluation mode, of images of at least 11 x 11 pixels.
        batches: images in [0, 1].
        draws: how many upscalings the mean of draws is of.
        seed: of the draws.

    Raises:
        RunError: images that SSIM cannot compare, or a flow of one stage.
    """
    if len(flow.stages) == 1:
        raise RunError("the flow has one stage, and no lower resolution to start from")
    if min(flow.shape[1:]) < SSIM_SIZE:
        raise RunError(f"SSIM compares images of at least {SSIM_SIZE} x {SSIM_SIZE} pixels, got {list(flow.shape)}")
    generator = seeded(seed)
    errors: dict[str, dict[str, list[Tensor]]] = {}
    for x in batches:
        for k, name in enumerate(flow.stage_names[:-1]):
            low = flow.downsample(x, len(flow.stages) - 1 - k)
            for method, image in upscaled(flow, low, draws, generator).items():
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
