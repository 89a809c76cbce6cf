"""The S / Δ / ⊕ wavelet transforms of Progressive Normalizing Flows, and the bounded-detail map.

For pairs ``(x0, x1)`` of neighbours along one axis::

    S x = (x0 + x1) / 2        Δ x = (x0 - x1) / 2        s ⊕ d = (s + d, s - d)        x = S x ⊕ Δ x

``(s, d) -> s ⊕ d`` has ``|det| = 2`` for each pair, so ``n`` pairs add ``-n log 2`` to the log-density of x.

Source: "PNF: Progressive normalizing flows", section 2 (whose ``x = Sx + Δx`` means ⊕).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

BOUNDARY = 2.0**-24
"""Distance from 0 and 1 below which the bounded-detail map takes a pixel to be this far inside."""


def haar_split(
    x: Tensor,  # [..., 2n, ...]
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Mean and half difference of neighbouring entries: ``s = (x0 + x1) / 2``, ``d = (x0 - x1) / 2``.

    Args:
        x: a floating tensor with an even size along ``dim``.
        dim: the axis whose neighbours are paired.

    Returns:
        ``s, d``: each of the shape of x with half the size along ``dim``. The log-determinant of ``x -> (s, d)`` is
        ``-log 2`` for each pair.

    Raises:
        TypeError: x is no floating tensor.
        ValueError: an odd size along ``dim``.
    """
    check_split("haar_split", x, dim)
    x0, x1 = _pairs(x, dim)
    return ((x0 + x1) / 2).to(x.dtype), ((x0 - x1) / 2).to(x.dtype)


def haar_merge(
    s: Tensor,  # [..., n, ...]
    d: Tensor,  # [..., n, ...]
    dim: int,
) -> Tensor:
    """``s ⊕ d``, the inverse of :func:`haar_split`: ``s + d`` and ``s - d``, interleaved along ``dim``.

    Args:
        s, d: floating tensors of one shape and dtype.
        dim: the axis along which the pairs lie.

    Returns:
        x, of the shape of s with twice the size along ``dim``. The log-determinant is ``+log 2`` for each pair.

    Raises:
        TypeError: s or d is no floating tensor, or the dtypes differ.
        ValueError: the shapes differ, or have no such dim.
    """
    check_merge("haar_merge", s, d, "d", dim)
    wide_s, wide_d = _wide(s), _wide(d)
    return _interleave(wide_s + wide_d, wide_s - wide_d, dim).to(s.dtype)


def haar_pyramid(
    x: Tensor,  # [..., H, W] or [..., D]
    levels: int,
    axes: str = "xy",
) -> tuple[Tensor, list[Tensor]]:
    """Split ``levels`` times along every axis.

    ``axes`` is the order in which upsampling adds resolution, coarse to fine, at each level: ``"xy"`` adds the width
    (the last axis), then the height, so analysis takes the height first.

    Args:
        x: a floating tensor whose sizes along the axes are multiples of ``2**levels``.
        levels: how often each axis is halved; 0 gives ``(x, [])``.
        axes: ``"x"``, ``"y"``, ``"xy"`` or ``"yx"``.

    Returns:
        ``base, details``: the coarsest mean, and ``levels * len(axes)`` details in the order of upsampling, coarse
        first. The log-determinant is ``-log 2`` for each entry of the details.

    Raises:
        TypeError: x is no floating tensor.
        ValueError: unknown axes, negative levels, or a size that is no multiple of ``2**levels``.
    """
    check_pyramid("haar_pyramid", x, levels, axes)
    details = []
    for dim in _dims(axes)[::-1] * levels:
        x, d = haar_split(x, dim)
        details.append(d)
    return x, details[::-1]


def haar_pyramid_inverse(
    base: Tensor,  # [..., h, w] or [..., d]
    details: Sequence[Tensor],
    axes: str = "xy",
) -> Tensor:
    """The inverse of :func:`haar_pyramid`: ``((base ⊕ details[0]) ⊕ details[1]) ...``, along the axes in turn.

    Args:
        base: the coarsest mean.
        details: what :func:`haar_pyramid` returned, or as many of its first entries as wanted.
        axes: ``"x"``, ``"y"``, ``"xy"`` or ``"yx"``.

    Returns:
        x. The log-determinant is ``+log 2`` for each entry of the details.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: unknown axes, or a detail whose shape is not that of the image it is added to.
    """
    check_pyramid_inverse("haar_pyramid_inverse", base, details, axes)
    dims = _dims(axes)
    for i, d in enumerate(details):
        base = haar_merge(base, d, dims[i % len(dims)])
    return base


def haar_bounded_split(
    x: Tensor,  # [B, C, ..., 2n, ...]
    gamma: Tensor,  # [C]
    dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and bounded detail of neighbouring pixels in [0, 1], with the log-determinant.

    With ``s = (x0 + x1) / 2`` two pixels in [0, 1] can only differ by ``|d| <= m = min(s, 1 - s)``; the detail

        u = m**gamma * atanh(d / m)

    is any real number. ``gamma = 0`` takes the whole scale out (u is a log-ratio), ``gamma = 1`` leaves small details
    as they are. With ``a, b = x0, x1`` where ``s <= 1/2`` and ``1 - x1, 1 - x0`` elsewhere, ``m = (a + b) / 2`` and
    nothing cancels:

        u = m**gamma * (log a - log b) / 2
        log |d(s, u) / dx| = (1 + gamma) log m - log a - log b - log 2        for each pair

    a, b and m are taken to be at least ``2**-24``, so black and white pixels have finite values.

    Args:
        x: ``[B, C, ...]``, a floating tensor with an even size along ``dim`` and values in [0, 1].
        gamma: ``[C]``, the exponent of each channel.
        dim: the axis whose neighbours are paired, not the batch or the channels.

    Returns:
        ``s, u, log_det``: ``[B, C, ..., n, ...]`` twice, and ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: x or gamma is no floating tensor.
        ValueError: an odd size along ``dim``, ``dim`` is no spatial axis, or gamma is not ``[C]``.
    """
    check_split("haar_bounded_split", x, dim)
    check_gamma("haar_bounded_split", x, gamma, dim)
    x0, x1 = _pairs(x, dim)
    s = (x0 + x1) / 2
    low = s <= 0.5
    a = torch.where(low, x0, 1 - x1).clamp(min=BOUNDARY)
    b = torch.where(low, x1, 1 - x0).clamp(min=BOUNDARY)
    log_m = torch.where(low, s, 1 - s).clamp(min=BOUNDARY).log()
    log_a, log_b = a.log(), b.log()
    g = _per_channel(gamma, s)
    u = (g * log_m).exp() * (log_a - log_b) / 2
    log_det = ((1 + g) * log_m - log_a - log_b - math.log(2)).flatten(1).sum(1)
    return s.to(x.dtype), u.to(x.dtype), log_det


def haar_bounded_merge(
    s: Tensor,  # [B, C, ..., n, ...]
    u: Tensor,  # [B, C, ..., n, ...]
    gamma: Tensor,  # [C]
    dim: int,
) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`haar_bounded_split`: two pixels in [0, 1] with mean s and bounded detail u.

        d = m tanh(v)        v = u / m**gamma        m = min(s, 1 - s)
        log |dx / d(s, u)| = (1 - gamma) log m + 3 log 2 - softplus(2 v) - softplus(-2 v)        for each pair

    Args:
        s: ``[B, C, ...]``, a floating tensor with values in [0, 1].
        u: of the shape and dtype of s, any real numbers.
        gamma: ``[C]``, the exponent of each channel.
        dim: the axis along which the pairs lie, not the batch or the channels.

    Returns:
        ``x, log_det``: ``[B, C, ..., 2n, ...]`` with values in [0, 1], and ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes of s and u differ.
        ValueError: the shapes differ, ``dim`` is no spatial axis, or gamma is not ``[C]``.
    """
    check_merge("haar_bounded_merge", s, u, "u", dim)
    check_gamma("haar_bounded_merge", s, gamma, dim)
    wide_s = _wide(s)
    low = wide_s <= 0.5
    m = torch.where(low, wide_s, 1 - wide_s)
    log_m = m.clamp(min=BOUNDARY).log()
    g = _per_channel(gamma, wide_s)
    # Bounded, since 0 times an overflow would be NaN.
    v = 2 * _wide(u) * (-g * log_m).clamp(max=80).exp()
    a, b = 2 * m * v.sigmoid(), 2 * m * (-v).sigmoid()
    x0, x1 = torch.where(low, a, 1 - b), torch.where(low, b, 1 - a)
    log_det = ((1 - g) * log_m + 3 * math.log(2) - softplus(v) - softplus(-v)).flatten(1).sum(1)
    return _interleave(x0.clamp(0, 1), x1.clamp(0, 1), dim).to(s.dtype), log_det


def check_split(op: str, x: Tensor, dim: int) -> None:
    """Raise unless x is floating and has an even size along dim."""
    _check_floating(op, "x", x)
    if not -x.dim() <= dim < x.dim() or x.shape[dim] % 2:
        raise ValueError(f"{op}: x must have an even size along dim {dim}, got {list(x.shape)}")


def check_merge(op: str, s: Tensor, d: Tensor, name: str, dim: int) -> None:
    """Raise unless s and its detail are floating and alike, and have that dim."""
    _check_floating(op, "s", s)
    _check_detail(op, s.dtype, s.shape, d, name, dim)


def check_gamma(op: str, x: Tensor, gamma: Tensor, dim: int) -> None:
    """Raise unless gamma is one exponent for each channel and dim is a spatial axis."""
    _check_floating(op, "gamma", gamma)
    if x.dim() < 3 or dim % x.dim() < 2:
        raise ValueError(f"{op}: dim must be a spatial axis of [B, C, ...], got dim {dim} of {list(x.shape)}")
    if gamma.shape != (x.shape[1],):
        raise ValueError(f"{op}: gamma must be [{x.shape[1]}], one for each channel, got {list(gamma.shape)}")


def check_axes(op: str, axes: str) -> None:
    """Raise unless axes name each of x and y at most once."""
    if axes not in ("x", "y", "xy", "yx"):
        raise ValueError(f'{op}: axes must be "x", "y", "xy" or "yx", got {axes!r}')


def check_pyramid(op: str, x: Tensor, levels: int, axes: str) -> None:
    """Raise unless x can be halved ``levels`` times along every axis."""
    _check_floating(op, "x", x)
    check_axes(op, axes)
    if levels < 0:
        raise ValueError(f"{op}: levels must be at least 0, got {levels}")
    for dim in _dims(axes):
        if x.dim() < -dim or x.shape[dim] % 2**levels:
            raise ValueError(f"{op}: x must have a multiple of {2**levels} along dim {dim}, got {list(x.shape)}")


def check_pyramid_inverse(op: str, base: Tensor, details: Sequence[Tensor], axes: str) -> None:
    """Raise unless every detail is like the image that it is added to."""
    check_axes(op, axes)
    _check_floating(op, "base", base)
    dims, shape = _dims(axes), list(base.shape)
    for i, d in enumerate(details):
        dim = dims[i % len(dims)]
        _check_detail(op, base.dtype, tuple(shape), d, f"details[{i}]", dim)
        shape[dim] *= 2


def _check_detail(op: str, dtype: torch.dtype, shape: tuple[int, ...], d: Tensor, name: str, dim: int) -> None:
    _check_floating(op, name, d)
    if dtype != d.dtype:
        raise TypeError(f"{op}: {name} must have the dtype of s, {dtype}, got {d.dtype}")
    if shape != d.shape:
        raise ValueError(f"{op}: {name} must have the shape of s, {list(shape)}, got {list(d.shape)}")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"{op}: s must have a dim {dim}, got {list(shape)}")


def _check_floating(op: str, name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{op}: {name} must be a floating Tensor, got {got}")


def _dims(axes: str) -> list[int]:
    return [-1 if axis == "x" else -2 for axis in axes]


def _wide(x: Tensor) -> Tensor:
    """At least float32, in which every op computes."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pairs(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    x0, x1 = _wide(x).unflatten(dim, (x.shape[dim] // 2, 2)).unbind(dim if dim < 0 else dim + 1)
    return x0, x1


def _interleave(x0: Tensor, x1: Tensor, dim: int) -> Tensor:
    dim %= x0.dim()
    return torch.stack((x0, x1), dim + 1).flatten(dim, dim + 1)


def _per_channel(gamma: Tensor, x: Tensor) -> Tensor:
    return gamma.to(x.dtype).view(-1, *(1,) * (x.dim() - 2))
