"""Checks of a trained flow: whether its mathematics still holds with these weights in floating point."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pnf.flows import ProgressiveFlow
from pnf.training.build import Flow, stage_inputs, stage_modules, stage_names
from pnf.training.hardware import exact_arithmetic

HALF_LEVEL = 1 / 512
"""Half the distance of two 8-bit levels. A smaller change does not change a stored image."""

LARGEST_JACOBIAN = 1024
"""The largest number of dimensions for which the Jacobian of a stage is computed."""


@dataclass(frozen=True)
class Diagnostic:
    """One check of a flow.

    Attributes:
        name: the quantity and its unit.
        measured: the error, or the number of failures.
        bound: the largest allowed value; ``None`` if the check was left out.
    """

    name: str
    measured: float
    bound: float | None

    @property
    def passed(self) -> bool:
        """Whether the check held or was left out. NaN does not hold."""
        return self.bound is None or self.measured <= self.bound


def diagnose(
    flow: Flow,
    x: Tensor,  # [B, *shape]
    condition: Tensor | None = None,  # [B]
    *,
    seed: int = 0,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Diagnostic]:
    """Check a flow on images like its training images.

    - Finite: likelihoods and gradients at these images and at black, white and checkered ones, samples, projections.
    - Invertible: images survive ``x -> z -> x`` at 8 bits in float32, and to 1e-6 in float64.
    - Log-determinant: each stage's equals that of its Jacobian at one image, by autograd in float64, to 1e-6 for each
      dimension. The inverse's is minus the forward's.
    - Projection: a second projection changes nothing at 8 bits, and an upscaled code downscales to the code.
    - Valid: samples of bounded details lie in [0, 1].

    Args:
        flow: a flow in evaluation mode, which does not change.
        x: images in [0, 1], on the device of the flow.
        condition: the labels of the images, if the flow takes them.
        seed: the seed of the samples.
        track: wraps the iterable over the stages, for a progress bar.
    """
    exact_arithmetic()
    generator = torch.Generator().manual_seed(seed)
    samples = flow.sample(len(x), condition, generator=generator)
    wide = copy.deepcopy(flow).double()
    return [
        *_finite(flow, x, condition, samples),
        *_invertible(flow, wide, x, condition),
        *_log_det(wide, x, condition, track),
        *(_projection(flow, x, condition, samples) if isinstance(flow, ProgressiveFlow) else ()),
    ]


def _finite(flow: Flow, x: Tensor, condition: Tensor | None, samples: Tensor) -> Iterator[Diagnostic]:
    checkered = torch.zeros_like(x[:1])
    checkered[..., ::2] = 1
    extreme = torch.cat((0 * x[:1], 0 * x[:1] + 1, checkered))
    first = None if condition is None else condition[:1].expand(len(extreme))
    for name, images, given in (("the images", x, condition), ("extreme images", extreme, first)):
        images = images.clone().requires_grad_()
        log_prob = flow.log_prob(images, given)
        yield Diagnostic(f"likelihoods of {name}: not finite", _infinite([log_prob]), 0)
        parameters = [p for p in flow.parameters() if p.requires_grad]
        found = torch.autograd.grad(log_prob.sum(), [images, *parameters], allow_unused=True)
        yield Diagnostic(f"gradients at {name}: not finite", _infinite([g for g in found if g is not None]), 0)
    yield Diagnostic("samples: not finite", _infinite([samples]), 0)


@torch.no_grad()
def _invertible(flow: Flow, wide: Flow, x: Tensor, condition: Tensor | None) -> Iterator[Diagnostic]:
    for name, model, images, bound in (
        ("float32", flow, x, HALF_LEVEL),
        ("float64", wide, x.double(), 1e-6),
    ):
        z, log_det = model(images, condition)
        back, inverse_log_det = model.inverse(z, condition)
        yield Diagnostic(f"x -> z -> x in {name}: error of a pixel", _largest(back - images), bound)
    total = _largest(log_det + inverse_log_det) / model.dims
    yield Diagnostic("log-determinants of x -> z -> x: nats/dim", total, 1e-6)


def _log_det(
    wide: Flow, x: Tensor, condition: Tensor | None, track: Callable[[Iterable[Any]], Iterable[Any]]
) -> Iterator[Diagnostic]:
    first = None if condition is None else condition[:1]
    inputs = stage_inputs(wide, x[:1].double())
    for name, stage, image in track(list(zip(stage_names(wide), stage_modules(wide), inputs, strict=True))):
        title = f"log-determinant of {name} off its Jacobian: nats/dim"
        dims = image[0].numel()
        if dims > LARGEST_JACOBIAN:
            yield Diagnostic(f"{title}: {dims} dims are too many", math.nan, None)
            continue
        image = image.clone().requires_grad_()
        *parts, log_det = stage(image, first)
        # The base stage also returns its image.
        result = torch.cat([part.flatten() for part in parts if part is not image])
        rows = [torch.autograd.grad(entry, image, retain_graph=True)[0].flatten() for entry in result]
        measured = _largest(torch.stack(rows).slogdet().logabsdet - log_det) / dims
        yield Diagnostic(title, measured, 1e-6)


@torch.no_grad()
def _projection(flow: ProgressiveFlow, x: Tensor, condition: Tensor | None, samples: Tensor) -> Iterator[Diagnostic]:
    projected = flow.project(x, condition=condition)
    infinite = _infinite([projected])
    yield Diagnostic("projections: not finite", infinite, 0)
    if infinite:
        return
    again = flow.project(projected, condition=condition)
    yield Diagnostic("projecting again: change of a pixel", _largest(again - projected), HALF_LEVEL)
    code = flow.encode(x)
    grown = flow.downsample(flow.decode(code, condition=condition), len(flow.stages) - 1)
    yield Diagnostic("a code, grown and shrunk: change of a pixel", _largest(grown - code), HALF_LEVEL)
    if flow.detail == "bounded":
        outside = int(((samples < 0) | (samples > 1)).sum())
        yield Diagnostic("samples outside [0, 1]: pixels", outside, 0)


def _infinite(tensors: Iterable[Tensor]) -> int:
    return sum(int((~tensor.isfinite()).sum()) for tensor in tensors)


def _largest(x: Tensor) -> float:
    return x.abs().max().item()
