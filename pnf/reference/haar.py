"""The S / Δ / ⊕ wavelet transforms of Progressive Normalizing Flows.

For pairs ``(x0, x1)`` of neighbours along one axis::

    S x = (x0 + x1) / 2        Δ x = (x0 - x1) / 2        s ⊕ d = (s + d, s - d)        x = S x ⊕ Δ x

``(s, d) -> s ⊕ d`` has ``|det| = 2`` for each pair, so ``n`` pairs add ``-n log 2`` to the log-density of x.

Source: "PNF: Progressive normalizing flows", section 2 (whose ``x = Sx + Δx`` means ⊕).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pnf.reference._checks import check_floating
from pnf.reference._precision import widen


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
    x0, x1 = pairs(x, dim)
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
    wide_s, wide_d = widen(s), widen(d)
    return interleave(wide_s + wide_d, wide_s - wide_d, dim).to(s.dtype)


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


def check_split(op: str, x: Tensor, dim: int) -> None:
    """Raise unless x is floating and has an even size along dim."""
    check_floating(op, "x", x)
    if not -x.dim() <= dim < x.dim() or x.shape[dim] % 2:
        raise ValueError(f"{op}: x must have an even size along dim {dim}, got {list(x.shape)}")


def check_merge(op: str, s: Tensor, d: Tensor, name: str, dim: int) -> None:
    """Raise unless s and its detail are floating and alike, and have that dim."""
    check_floating(op, "s", s)
    _check_detail(op, s.dtype, s.shape, d, name, dim)


def check_axes(op: str, axes: str) -> None:
    """Raise unless axes name each of x and y at most once."""
    if axes not in ("x", "y", "xy", "yx"):
        raise ValueError(f'{op}: axes must be "x", "y", "xy" or "yx", got {axes!r}')


def check_pyramid(op: str, x: Tensor, levels: int, axes: str) -> None:
    """Raise unless x can be halved ``levels`` times along every axis."""
    check_floating(op, "x", x)
    check_axes(op, axes)
    if levels < 0:
        raise ValueError(f"{op}: levels must be at least 0, got {levels}")
    for dim in _dims(axes):
        if x.dim() < -dim or x.shape[dim] % 2**levels:
            raise ValueError(f"{op}: x must have a multiple of {2**levels} along dim {dim}, got {list(x.shape)}")


def check_pyramid_inverse(op: str, base: Tensor, details: Sequence[Tensor], axes: str) -> None:
    """Raise unless every detail is like the image that it is added to."""
    check_axes(op, axes)
    check_floating(op, "base", base)
    dims, shape = _dims(axes), list(base.shape)
    for i, d in enumerate(details):
        dim = dims[i % len(dims)]
        _check_detail(op, base.dtype, tuple(shape), d, f"details[{i}]", dim)
        shape[dim] *= 2


def _check_detail(op: str, dtype: torch.dtype, shape: tuple[int, ...], d: Tensor, name: str, dim: int) -> None:
    check_floating(op, name, d)
    if dtype != d.dtype:
        raise TypeError(f"{op}: {name} must have the dtype of s, {dtype}, got {d.dtype}")
    if shape != d.shape:
        raise ValueError(f"{op}: {name} must have the shape of s, {list(shape)}, got {list(d.shape)}")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"{op}: s must have a dim {dim}, got {list(shape)}")


# Not by flatten and unflatten, for which PyTorch cannot batch gradients.


def pairs(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The first and the second entries of the pairs along dim, at least in float32."""
    dim %= x.dim()
    x0, x1 = widen(x).reshape(*x.shape[:dim], x.shape[dim] // 2, 2, *x.shape[dim + 1 :]).unbind(dim + 1)
    return x0, x1


def interleave(x0: Tensor, x1: Tensor, dim: int) -> Tensor:
    """A tensor of such pairs."""
    dim %= x0.dim()
    return torch.stack((x0, x1), dim + 1).reshape(*x0.shape[:dim], 2 * x0.shape[dim], *x0.shape[dim + 1 :])


def _dims(axes: str) -> list[int]:
    return [-1 if axis == "x" else -2 for axis in axes]
