"""The bounded-detail map: the detail of two pixels in [0, 1], stretched over all real numbers.

It replaces Δ of :mod:`pnf.reference.haar` in flows of images, so that every sample is a valid image.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pnf.reference._channels import per_channel
from pnf.reference._checks import check_floating
from pnf.reference._precision import at_least, at_most, widen
from pnf.reference.haar import check_merge, check_split, interleave, pairs

BOUNDARY = 2.0**-24
"""The least distance of a pixel from 0 and 1. Pixels that are closer count as this far inside."""

LARGEST_EXPONENT = 64.0
"""The bound of ``|gamma| log(1 / m)`` where it enlarges a detail. It keeps results and gradients finite in float32."""


def haar_bounded_split(
    x: Tensor,  # [B, C, ..., 2n, ...]
    gamma: Tensor,  # [C]
    dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split neighbouring pixels in [0, 1] into mean and bounded detail, with the log-determinant.

    The half difference d of two pixels in [0, 1] with mean ``s = (x0 + x1) / 2`` satisfies
    ``|d| <= m = min(s, 1 - s)``. So the detail

        u = m**gamma * atanh(d / m)

    can be any real number. ``gamma = 0`` removes the whole scale (u is a log-ratio), ``gamma = 1`` leaves small details
    as they are. Without cancellation, with ``a, b = x0, x1`` where ``s <= 1/2`` and ``1 - x1, 1 - x0`` elsewhere, and
    ``m = (a + b) / 2``:

        u = m**gamma * (log a - log b) / 2
        log |d(s, u) / dx| = (1 + gamma) log m - log a - log b - log 2        for each pair

    a, b and m are clamped to at least ``2**-24``, so black and white pixels have finite values.

    Args:
        x: ``[B, C, ...]``, a floating tensor with an even size along ``dim`` and values in [0, 1].
        gamma: ``[C]``, the exponent of each channel.
        dim: the spatial axis along which the pairs lie.

    Returns:
        ``s, u`` ``[B, C, ..., n, ...]``, and ``log_det`` ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: x or gamma is no floating tensor.
        ValueError: the size along ``dim`` is odd, ``dim`` is no spatial axis, or gamma is not ``[C]``.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x, gamma = torch.rand(2, 3, 8, 8), torch.zeros(3)
        >>> s, u, log_det = ops.haar_bounded_split(x, gamma, dim=-1)
        >>> s.shape, log_det.shape
        (torch.Size([2, 3, 8, 4]), torch.Size([2]))
    """
    check_split("haar_bounded_split", x, dim)
    check_gamma("haar_bounded_split", x, gamma, dim)
    x0, x1 = pairs(x, dim)
    s = (x0 + x1) / 2
    low = s <= 0.5
    a = at_least(torch.where(low, x0, 1 - x1), BOUNDARY)
    b = at_least(torch.where(low, x1, 1 - x0), BOUNDARY)
    log_m = at_least(torch.where(low, s, 1 - s), BOUNDARY).log()
    log_a, log_b = a.log(), b.log()
    g = per_channel(gamma.to(s.dtype), s)
    u = at_most(g * log_m, LARGEST_EXPONENT).exp() * (log_a - log_b) / 2
    log_det = ((1 + g) * log_m - log_a - log_b - math.log(2)).flatten(1).sum(1)
    return s.to(x.dtype), u.to(x.dtype), log_det


def haar_bounded_merge(
    s: Tensor,  # [B, C, ..., n, ...]
    u: Tensor,  # [B, C, ..., n, ...]
    gamma: Tensor,  # [C]
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Invert :func:`haar_bounded_split`: two pixels in [0, 1] with mean s and bounded detail u.

        d = m tanh(v)        v = u / m**gamma        m = min(s, 1 - s)
        log |dx / d(s, u)| = (1 - gamma) log m + 3 log 2 - softplus(2 v) - softplus(-2 v)        for each pair

    Args:
        s: ``[B, C, ...]``, a floating tensor with values in [0, 1].
        u: any real numbers, of the shape and dtype of s.
        gamma: ``[C]``, the exponent of each channel.
        dim: the spatial axis along which the pairs lie.

    Returns:
        ``x`` ``[B, C, ..., 2n, ...]`` with values in [0, 1], and ``log_det`` ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes of s and u differ.
        ValueError: the shapes differ, ``dim`` is no spatial axis, or gamma is not ``[C]``.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> s, u, gamma = torch.rand(2, 3, 8, 4), 3 * torch.randn(2, 3, 8, 4), torch.zeros(3)
        >>> x, log_det = ops.haar_bounded_merge(s, u, gamma, dim=-1)
        >>> x.shape, bool(((x >= 0) & (x <= 1)).all())
        (torch.Size([2, 3, 8, 8]), True)
    """
    check_merge("haar_bounded_merge", s, u, "u", dim)
    check_gamma("haar_bounded_merge", s, gamma, dim)
    wide_s = widen(s)
    low = wide_s <= 0.5
    m = torch.where(low, wide_s, 1 - wide_s)
    log_m = at_least(m, BOUNDARY).log()
    g = per_channel(gamma.to(wide_s.dtype), wide_s)
    v = 2 * widen(u) * at_most(-g * log_m, LARGEST_EXPONENT).exp()
    a, b = 2 * m * v.sigmoid(), 2 * m * (-v).sigmoid()
    x0, x1 = torch.where(low, a, 1 - b), torch.where(low, b, 1 - a)
    log_det = ((1 - g) * log_m + 3 * math.log(2) + logsigmoid(v) + logsigmoid(-v)).flatten(1).sum(1)
    x0, x1 = (at_most(at_least(pixel, 0.0), 1.0) for pixel in (x0, x1))
    return interleave(x0, x1, dim).to(s.dtype), log_det


def check_gamma(op: str, x: Tensor, gamma: Tensor, dim: int) -> None:
    """Raise unless gamma is one exponent for each channel and dim is a spatial axis."""
    check_floating(op, "gamma", gamma)
    if x.dim() < 3 or dim % x.dim() < 2:
        raise ValueError(f"{op}: dim must be a spatial axis of [B, C, ...], got dim {dim} of {list(x.shape)}")
    if gamma.shape != (x.shape[1],):
        raise ValueError(f"{op}: gamma must be [{x.shape[1]}], one for each channel, got {list(gamma.shape)}")
