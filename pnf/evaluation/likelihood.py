"""Held-out likelihoods of trained flows, total and by stage."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pnf.data import Images, dequantize
from pnf.training import processes
from pnf.training.batches import TEST_NOISE, seeded
from pnf.training.build import Flow, stage_dims, stage_inputs, stage_modules, stage_names
from pnf.training.config import RunError
from pnf.training.trainer import exact_arithmetic

_CHUNK = 1000


@dataclass(frozen=True)
class Evaluation:
    """The likelihood of held-out images.

    Attributes:
        nats: the mean log-likelihood of an image.
        nats_error: the standard error of that mean, over images.
        bits_per_dim: ``8 - nats / (D log 2)``.
        bits_per_dim_error: its standard error.
        stage_bits_per_dim: each stage's share in the bits/dim of the image, ``(8 n_k - nats_k / log 2) / D``.
        stage_nats: each stage's share in the nats.
        parameters: the number of parameters of the flow.
        images: the number of images.
        images_per_second: the speed of the evaluation, a draw of noise being an image of its own.
        draws: the number K of draws of dequantization noise for each image.
        draws_bits_per_dim: the bits/dim of ``log (1/K sum_k p(x + u_k))``, a lower bound of the likelihood of the 8-bit
            image that is tighter than the mean over one draw. For K = 1 it is ``bits_per_dim``.
        draws_bits_per_dim_error: its standard error, over images.
    """

    nats: float
    nats_error: float
    bits_per_dim: float
    bits_per_dim_error: float
    stage_bits_per_dim: dict[str, float]
    stage_nats: dict[str, float]
    parameters: int
    images: int
    images_per_second: float
    draws: int
    draws_bits_per_dim: float
    draws_bits_per_dim_error: float


def evaluate(
    flow: Flow,
    images: Images,
    *,
    seed: int = 0,
    draws: int = 1,
    batch_size: int = 250,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Evaluation:
    """Evaluate a flow on images. The processes of torchrun share them.

    Source of the bound by several draws: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016).

    Args:
        flow: a flow in evaluation mode.
        images: ``[N, *flow.shape]``.
        seed: the seed of the dequantization noise, which is the same for every flow.
        draws: the number K of draws of noise for each image, for the tighter bound; the time grows with it.
        batch_size: the number of images at a time. It changes the result by rounding only.
        track: wraps the iterable over the batches, for a progress bar.

    Raises:
        RunError: the images have another shape than the flow's, or there are fewer than two.
    """
    started = time.perf_counter()
    found = [stage_log_probs(flow, images, seed=seed, draw=k, batch_size=batch_size, track=track) for k in range(draws)]
    return summarise(flow, found[0], time.perf_counter() - started, [by_stage.sum(1) for by_stage in found[1:]])


@torch.no_grad()
def stage_log_probs(
    flow: Flow,
    images: Images,
    *,
    seed: int = 0,
    draw: int = 0,
    batch_size: int = 250,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Tensor:  # [N, stages], float64
    """Each stage's share in the log-likelihood of each image, in nats, under one of the draws of noise.

    Other arguments and errors are those of :func:`evaluate`.
    """
    check_images(flow, images)
    if len(images) < 2:
        raise RunError(f"a standard error needs at least 2 images, got {len(images)}")
    device = next(flow.parameters()).device
    exact_arithmetic()
    generator, count = seeded(seed, TEST_NOISE, *([draw] if draw else [])), 0
    own: dict[int, Tensor] = {}
    # Noise is drawn in chunks of a fixed size, so that the result does not depend on the batch size.
    for pixels in track(images.pixels.split(_CHUNK)):
        for part in dequantize(pixels, generator).split(batch_size):
            if count % processes.size() == processes.rank():
                inputs = stage_inputs(flow, part.to(device))
                log_probs = [stage.log_prob(i) for stage, i in zip(stage_modules(flow), inputs, strict=True)]  # type: ignore[operator]
                own[count] = torch.stack(log_probs, 1).double().cpu()
            count += 1
    return torch.cat(processes.gather_parts(own))


def check_images(flow: Flow, images: Images) -> None:
    """Raise RunError unless the images have the flow's shape."""
    if images.shape != flow.shape:
        raise RunError(f"the model is of images {list(flow.shape)}, got {images.name} with {list(images.shape)}")


def summarise(
    flow: Flow,
    by_stage: Tensor,  # [N, stages]
    seconds: float,
    further: Sequence[Tensor] = (),  # [N] each
) -> Evaluation:
    """Summarise the log-likelihoods of :func:`stage_log_probs`, and of further draws, measured in ``seconds``."""
    total, unit = by_stage.sum(1), flow.dims * math.log(2)
    nats, error = _mean(total)
    bound, bound_error = _mean(torch.stack([total, *further]).logsumexp(0) - math.log(1 + len(further)))
    stage_nats = dict(zip(stage_names(flow), by_stage.mean(0).tolist(), strict=True))
    return Evaluation(
        nats=nats,
        nats_error=error,
        bits_per_dim=8 - nats / unit,
        bits_per_dim_error=error / unit,
        stage_bits_per_dim={
            name: 8 * dims / flow.dims - stage_nats[name] / unit
            for name, dims in zip(stage_names(flow), stage_dims(flow), strict=True)
        },
        stage_nats=stage_nats,
        parameters=sum(p.numel() for p in flow.parameters()),
        images=len(by_stage),
        images_per_second=(1 + len(further)) * len(by_stage) / seconds,
        draws=1 + len(further),
        draws_bits_per_dim=8 - bound / unit,
        draws_bits_per_dim_error=bound_error / unit,
    )


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()
