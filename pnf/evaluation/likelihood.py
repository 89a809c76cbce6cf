"""Held-out likelihoods of trained flows, total and by stage."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from pnf.data.images import Examples
from pnf.data.transforms import placed
from pnf.evaluation.dequantization import fit_slopes, fitted_noise
from pnf.flows import ProgressiveFlow
from pnf.training import processes
from pnf.training.batches import TEST_NOISE, Batch, seeded
from pnf.training.build import Flow, stage_dims, stage_inputs, stage_modules, stage_names
from pnf.training.config import RunError
from pnf.training.hardware import exact_arithmetic
from pnf.training.standardisation import Standardisation

_CHUNK = 1000

_FITTED = 32
"""Images whose noise is fitted at a time, which takes the memory of a training step."""


@dataclass(frozen=True)
class Classification:
    """The classification of held-out images by Bayes' rule, ``p(c | x) = p(c) p(x | c) / sum_k p(k) p(x | k)``.

    Attributes:
        accuracy: the share of images whose label is the most probable class.
        accuracy_error: its standard error.
        calibration_error: the expected calibration error over 15 bins: the mean distance of the probability of the most
            probable class from the share of images for which it is the label.
        bits_per_dim: the bits/dim without the label, of ``log p(x) = log sum_c p(c) p(x | c)``.
        bits_per_dim_error: its standard error.
        prior: ``p(c)`` of each class.
        classes: the number of classes.
        images: the number of images.
    """

    accuracy: float
    accuracy_error: float
    calibration_error: float
    bits_per_dim: float
    bits_per_dim_error: float
    prior: list[float]
    classes: int
    images: int


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
        images_per_second: the speed of the evaluation, an image under another class or draw of noise being one of its
            own.
        draws: the number K of draws of dequantization noise for each image.
        draws_bits_per_dim: the bits/dim of ``log (1/K sum_k p(x + u_k))``, a lower bound of the likelihood of the 8-bit
            image that is tighter than the mean over one draw. For K = 1 it is ``bits_per_dim``.
        draws_bits_per_dim_error: its standard error, over images.
        variational_bits_per_dim: the same bound with noise that is fitted to each image, if that was asked for.
        variational_bits_per_dim_error: its standard error.
        classification: what the flow says about the classes of the images, if it is conditioned on labels. All the
            likelihoods above are then those given the label, ``log p(x | c)``.
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
    variational_bits_per_dim: float | None = None
    variational_bits_per_dim_error: float | None = None
    classification: Classification | None = None


def evaluate(
    flow: Flow,
    images: Examples,
    *,
    seed: int = 0,
    draws: int = 1,
    variational: bool = False,
    of_class: Sequence[int] | None = None,
    batch_size: int = 250,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Evaluation:
    """Evaluate a flow on images. The processes of torchrun share them.

    A flow with labels is also evaluated under every class, which takes as many times as long.

    Sources: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016), of the bound by several draws;
    Ho et al., "Flow++" (2019), of variational dequantization, there with noise from a trained flow.

    Args:
        flow: a flow in evaluation mode.
        images: ``[N, *flow.shape]``.
        seed: the seed of the dequantization noise, which is the same for every flow.
        draws: the number K of draws of noise for each image, for the tighter bound; the time grows with it.
        variational: whether to fit the noise to each image as well, see :func:`fit_slopes`: the expectation of
            ``log p((x + u) / 256) - log q(u | x)`` bounds the likelihood of the 8-bit image more tightly than uniform
            noise. This takes about as long as six draws.
        of_class: the number of training images of each class, for ``p(c)``. By default all are equally probable.
        batch_size: the number of images at a time. It changes the result by rounding only.
        track: wraps the iterables over the batches and over further draws, for a progress bar.

    Raises:
        RunError: the images have another shape than the flow's, or there are fewer than two.
    """
    started = time.perf_counter()
    how: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "track": track}
    check_images(flow, images)
    if classes := num_classes(flow):
        by_class = class_log_probs(flow, images, **how)
        found = [by_class[torch.arange(len(images)), images.labels]]
    else:
        found = [stage_log_probs(flow, images, **how)]
    found += [stage_log_probs(flow, images, draw=k, **how | {"track": iter}) for k in track(range(1, draws))]
    result = summarise(flow, found[0], time.perf_counter() - started, [by_stage.sum(1) for by_stage in found[1:]])
    if variational:
        nats, error = _mean(_bound(variational_log_probs(flow, images, seed=seed, draws=draws, track=track)))
        unit = flow.dims * math.log(2)
        result = replace(result, variational_bits_per_dim=8 - nats / unit, variational_bits_per_dim_error=error / unit)
    if not classes:
        return result
    speed = result.images_per_second * (classes + draws - 1) / draws
    classification = classify(by_class.sum(2), log_prior(classes, of_class), images, flow.dims)
    return replace(result, images_per_second=speed, classification=classification)


@dataclass(frozen=True)
class RealEvaluation:
    """The likelihood of held-out real data, in its own units.

    Attributes:
        nats: the mean log-likelihood of an example, ``log p(x)``.
        nats_error: the standard error of that mean, over examples.
        nats_per_dim: ``nats / D``.
        nats_per_dim_error: its standard error.
        stage_nats: each stage's share in the log-likelihood of the standardised example.
        standardisation_nats: the share of the standardisation, ``-sum log std``. With the stages' it sums to ``nats``.
        parameters: the number of parameters of the flow.
        examples: the number of examples.
    """

    nats: float
    nats_error: float
    nats_per_dim: float
    nats_per_dim_error: float
    stage_nats: dict[str, float]
    standardisation_nats: float
    parameters: int
    examples: int


def evaluate_reals(
    flow: Flow,
    reals: Examples,
    standardisation: Standardisation,
    *,
    batch_size: int = 250,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> RealEvaluation:
    """Evaluate a flow on real data. The processes of torchrun share it.

    Args:
        flow: a flow in evaluation mode.
        reals: examples, standardised.
        standardisation: their standardisation.
        batch_size: the number of examples at a time. It changes the result by rounding only.
        track: wraps the iterable over the batches, for a progress bar.

    Raises:
        RunError: the examples have another shape than the flow's, or there are fewer than two.
    """
    by_stage = stage_log_probs(flow, reals, batch_size=batch_size, track=track)
    nats, error = _mean(by_stage.sum(1) + standardisation.log_det)
    return RealEvaluation(
        nats=nats,
        nats_error=error,
        nats_per_dim=nats / flow.dims,
        nats_per_dim_error=error / flow.dims,
        stage_nats=dict(zip(stage_names(flow), by_stage.mean(0).tolist(), strict=True)),
        standardisation_nats=standardisation.log_det,
        parameters=sum(p.numel() for p in flow.parameters()),
        examples=len(by_stage),
    )


def num_classes(flow: Flow) -> int | None:
    """The number of classes of a flow that is conditioned on labels."""
    return flow.num_classes if isinstance(flow, ProgressiveFlow) else None


def log_prior(classes: int, of_class: Sequence[int] | None) -> Tensor:  # [classes], float64
    """``log p(c)``: the shares of the training images, or equal ones."""
    counts = torch.ones(classes) if of_class is None else torch.tensor(of_class)
    return (counts.double() / counts.sum()).log()


def classify(
    given: Tensor,  # [N, K], float64
    prior: Tensor,  # [K], float64
    images: Examples,
    dims: int,
) -> Classification:
    """Classify images by ``log p(x | c)`` and ``log p(c)``, in nats, and compare with their labels."""
    labels = images.labels
    assert labels is not None
    joint = given + prior
    posterior, total = joint.softmax(1), joint.logsumexp(1)
    confidence, chosen = posterior.max(1)
    accuracy, accuracy_error = _mean((chosen == labels).double())
    # Imported on first use, since it takes a second.
    from torchmetrics.functional.classification import binary_calibration_error

    # torchmetrics puts a confidence of exactly 1 into a bin of its own, so take the largest float32 below it.
    # Its error of several classes is this one of the most probable class, in float32.
    calibration_error = binary_calibration_error(confidence.clamp(max=1 - 2**-24), (chosen == labels).long(), 15)
    nats, error = _mean(total)
    unit = dims * math.log(2)
    return Classification(
        accuracy=accuracy,
        accuracy_error=accuracy_error,
        calibration_error=float(calibration_error),
        bits_per_dim=8 - nats / unit,
        bits_per_dim_error=error / unit,
        prior=prior.exp().tolist(),
        classes=joint.shape[1],
        images=len(joint),
    )


def without_labels(
    by_class: Tensor,  # [N, classes, stages]
    prior: Tensor,  # [classes], log p(c)
) -> Tensor:  # [N, stages]
    """Each stage's share in ``log p(x) = log sum_c p(c) p(x | c)``.

    The shares up to stage k sum to the likelihood of the image at its resolution, ``log sum_c p(c) p(x_[k] | c)``.
    """
    totals = (by_class.cumsum(2) + prior[:, None]).logsumexp(1)
    return torch.cat((totals[:, :1], totals.diff(dim=1)), 1)


def class_log_probs(flow: Flow, images: Examples, **how: Any) -> Tensor:  # [N, classes, stages], float64
    """Each stage's share in the log-likelihood of each image given each class, in nats.

    Arguments and errors are those of :func:`stage_log_probs`.
    """
    return _log_probs(flow, images, range(num_classes(flow) or 0), **how)


def stage_log_probs(
    flow: Flow,
    images: Examples,
    *,
    seed: int = 0,
    draw: int = 0,
    batch_size: int = 250,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Tensor:  # [N, stages], float64
    """Each stage's share in the log-likelihood of each image, in nats, under one of the draws of noise.

    Under a flow with labels it is the likelihood given the label. Other arguments and errors are those of
    :func:`evaluate`.
    """
    return _log_probs(flow, images, None, seed=seed, draw=draw, batch_size=batch_size, track=track)[:, 0]


@torch.no_grad()
def _log_probs(
    flow: Flow,
    images: Examples,
    classes: Sequence[int] | None,
    *,
    seed: int = 0,
    draw: int = 0,
    batch_size: int = 250,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Tensor:  # [N, classes, stages], float64
    """The log-likelihoods given each of the classes, or given the own label, if there is one."""
    check_images(flow, images, labels=classes is None)
    if len(images) < 2:
        raise RunError(f"a standard error needs at least 2 {images.noun}, got {len(images)}")
    device = next(flow.parameters()).device
    exact_arithmetic()
    generator = seeded(seed, TEST_NOISE, *([draw] if draw else []))
    own: dict[int, Tensor] = {}
    stages = cast("list[Any]", stage_modules(flow))
    starts = range(0, len(images), _CHUNK)
    batches = sum(-(-min(_CHUNK, len(images) - start) // batch_size) for start in starts)
    parts = _parts(images, starts, generator, batch_size)
    for number, part in zip(track(range(batches)), parts, strict=True):
        if number % processes.size() == processes.rank():
            inputs = stage_inputs(flow, part.x.to(device))
            own_label = None if part.condition is None else part.condition.to(device)
            given = [own_label] if classes is None else [torch.full((len(part.x),), c).to(device) for c in classes]
            log_probs = [
                torch.stack([stage.log_prob(x, c) for stage, x in zip(stages, inputs, strict=True)], 1) for c in given
            ]
            own[number] = torch.stack(log_probs, 1).double().cpu()
    return torch.cat(processes.gather_parts(own))


def variational_log_probs(
    flow: Flow,
    images: Examples,
    *,
    seed: int = 0,
    draws: int = 1,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Tensor:  # [N, draws], float64
    """``log p((x + u) / 256) - log q(u | x)`` of each image, in nats, under draws of noise that is fitted to it.

    Arguments and errors are those of :func:`evaluate`.
    """
    check_images(flow, images)
    device = next(flow.parameters()).device
    exact_arithmetic()
    own: dict[int, Tensor] = {}
    for number, start in enumerate(track(range(0, len(images), _FITTED))):
        if number % processes.size() != processes.rank():
            continue
        part = images.take(slice(start, start + _FITTED))
        pixels, labels = part.stored.to(device), None if part.labels is None else part.labels.to(device)
        log_prob = functools.partial(flow.log_prob, condition=labels)
        slopes = fit_slopes(log_prob, pixels)
        found = []
        for k in range(draws):
            generator = seeded(seed, TEST_NOISE, number, k)
            uniform = torch.rand(pixels.shape, generator=generator, dtype=torch.float64).to(device)
            noise, log_q = fitted_noise(slopes, uniform)
            with torch.no_grad():
                found.append((log_prob(placed(pixels, noise)).double() - log_q).cpu())
        own[number] = torch.stack(found, 1)
    return torch.cat(processes.gather_parts(own))


def _parts(images: Examples, starts: Iterable[int], generator: torch.Generator, batch_size: int) -> Iterator[Batch]:
    """Batches of images. Noise is drawn in chunks of a fixed size, so it does not depend on the batch size."""
    for start in starts:
        chunk = images.take(slice(start, start + _CHUNK))
        yield from Batch(chunk.continuous(generator), chunk.labels).split(batch_size)


def check_images(flow: Flow, images: Examples, *, labels: bool = True) -> None:
    """Raise RunError unless images, or other examples, have the flow's shape and, if it wants them, labels."""
    if images.shape != flow.shape:
        raise RunError(f"the model is of {images.noun} {list(flow.shape)}, got {images.name} with {list(images.shape)}")
    classes = num_classes(flow)
    if labels and (images.labels is None) != (classes is None):
        raise RunError(
            f"the model has {classes or 'no'} classes, and the images of {images.name} were read with"
            f"{'out' if images.labels is None else ''} labels"
        )


def summarise(
    flow: Flow,
    by_stage: Tensor,  # [N, stages]
    seconds: float,
    further: Sequence[Tensor] = (),  # [N] each
) -> Evaluation:
    """Summarise the log-likelihoods of :func:`stage_log_probs`, and of further draws, measured in ``seconds``."""
    total, unit = by_stage.sum(1), flow.dims * math.log(2)
    nats, error = _mean(total)
    bound, bound_error = _mean(_bound(torch.stack([total, *further], 1)))
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


def _bound(by_draw: Tensor) -> Tensor:  # [N, K] -> [N]
    """The importance-weighted bound of K draws."""
    return by_draw.logsumexp(1) - math.log(by_draw.shape[1])


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()
