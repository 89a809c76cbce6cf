"""Variational dequantization: noise that is fitted to the flow and to each image."""

from collections.abc import Callable

import torch
from torch import Tensor

from pnf.data.transforms import placed

STEEPEST = 8.0
"""The bound of slopes: the density of the noise may change by ``exp(8)`` over a cell."""

SMALLEST = 1e-3
"""Below it a slope counts as 0, where its formulas would divide by it."""


def fit_slopes(log_prob: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Fit the noise of every pixel, ``q(u) = t exp(t u) / (exp(t) - 1)`` on [0, 1], to a log-density.

    Among such q the bound ``E_q[log p((pixels + u) / 256) - log q(u)]`` is largest where every slope t is the mean of
    the log-density's own slope in that pixel. This takes the slope in the middle of the cell, and once more at the mean
    of the noise that follows from it, and returns the mean of the two.

    Args:
        log_prob: maps images in [0, 1] to their log-density ``[B]``, one by one.
        pixels: ``[B, *shape]``, uint8.

    Returns:
        The slopes, ``[B, *shape]`` in float64.
    """
    first = _slopes(log_prob, pixels, torch.full(pixels.shape, 0.5, dtype=torch.float64, device=pixels.device))
    return (first + _slopes(log_prob, pixels, _mean(first))) / 2


def _slopes(log_prob: Callable[[Tensor], Tensor], pixels: Tensor, noise: Tensor) -> Tensor:
    """The derivative of the log-density by the noise of each pixel."""
    with torch.enable_grad():
        x = placed(pixels, noise).requires_grad_()
        (grad,) = torch.autograd.grad(log_prob(x).sum(), x)
    return (grad.double() / 256).nan_to_num(0).clamp(-STEEPEST, STEEPEST)


def fitted_noise(slopes: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Turn uniform numbers into noise with these slopes.

    Args:
        slopes: ``[B, *shape]``.
        uniform: numbers in [0, 1] of this shape.

    Returns:
        The noise, and its log-density ``[B]``.
    """
    flat = slopes.abs() < SMALLEST
    t = torch.where(flat, 1.0, slopes)
    noise = torch.where(flat, uniform, torch.log1p(uniform * t.expm1()) / t)
    log_q = torch.where(flat, 0.0, t * noise - (t.expm1() / t).log())
    return noise, log_q.flatten(1).sum(1)


def _mean(slopes: Tensor) -> Tensor:
    """The mean of noise with these slopes."""
    flat = slopes.abs() < SMALLEST
    t = torch.where(flat, 1.0, slopes)
    return torch.where(flat, 0.5, -1 / (-t).expm1() - 1 / t)
