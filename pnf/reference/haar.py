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
    """Split neighbours into mean and half difference: ``s = (x0 + x1) / 2``, ``d = (x0 - x1) / 2``.

    Args:
        x: a floating tensor with an even size along ``dim``.
        dim: the axis along which the pairs lie.

    Returns:
        ``s, d``: each of the shape of x with half the size along ``dim``. The log-determinant of ``x -> (s, d)`` is
        ``-log 2`` for each pair.

    Raises:
        TypeError: x is no floating tensor.
        ValueError: the size along ``dim`` is odd.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.haar_split(torch.tensor([5.0, 3.0, 1.0, 1.0]), dim=-1)
        (tensor([4., 1.]), tensor([1., 0.]))
    """
    check_split("haar_split", x, dim)
    x0, x1 = pairs(x, dim)
    return ((x0 + x1) / 2).to(x.dtype), ((x0 - x1) / 2).to(x.dtype)


def haar_merge(
    s: Tensor,  # [..., n, ...]
    d: Tensor,  # [..., n, ...]
    dim: int,
) -> Tensor:
    """Invert :func:`haar_split`: ``s ⊕ d``, which is ``s + d`` and ``s - d`` interleaved along ``dim``.

    Args:
        s, d: floating tensors of one shape and dtype.
        dim: the axis along which the pairs lie.

    Returns:
        x, of the shape of s with twice the size along ``dim``. The log-determinant is ``+log 2`` for each pair.

    Raises:
        TypeError: s or d is no floating tensor, or the dtypes differ.
        ValueError: the shapes differ, or have no such dim.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.haar_merge(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 0.0]), dim=-1)
        tensor([5., 3., 1., 1.])
    """
    check_merge("haar_merge", s, d, "d", dim)
    wide_s, wide_d = widen(s), widen(d)
    return interleave(wide_s + wide_d, wide_s - wide_d, dim).to(s.dtype)


def haar_pyramid(
    x: Tensor,  # [..., H, W] or [..., D]
    levels: int,
    axes: str = "xy",
) -> tuple[Tensor, list[Tensor]]:
    """Split x ``levels`` times along every axis by :func:`haar_split`.

    ``axes`` is the order in which upsampling adds resolution at each level: ``"xy"`` adds the width (the last axis),
    then the height. So the analysis halves the height first.

    Args:
        x: a floating tensor whose sizes along the axes are multiples of ``2**levels``.
        levels: the number of times that each axis is halved; 0 gives ``(x, [])``.
        axes: ``"x"``, ``"y"``, ``"xy"`` or ``"yx"``.

    Returns:
        ``base, details``: the coarsest mean, and ``levels * len(axes)`` details in the order of upsampling, coarse
        first. The log-determinant is ``-log 2`` for each entry of the details.

    Raises:
        TypeError: x is no floating tensor.
        ValueError: the axes are unknown, levels is negative, or a size is no multiple of ``2**levels``.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> base, details = ops.haar_pyramid(torch.rand(1, 3, 8, 8), levels=1)
        >>> base.shape, [tuple(d.shape) for d in details]
        (torch.Size([1, 3, 4, 4]), [(1, 3, 4, 4), (1, 3, 4, 8)])
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
    """Invert :func:`haar_pyramid`: ``((base ⊕ details[0]) ⊕ details[1]) ...``, along the axes in turn.

    Args:
        base: the coarsest mean.
        details: the details from :func:`haar_pyramid`, or the first few of them for an intermediate resolution.
        axes: ``"x"``, ``"y"``, ``"xy"`` or ``"yx"``.

    Returns:
        x. The log-determinant is ``+log 2`` for each entry of the details.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the axes are unknown, or a detail has another shape than its mean.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x = torch.rand(1, 3, 8, 8)
        >>> torch.allclose(ops.haar_pyramid_inverse(*ops.haar_pyramid(x, levels=2)), x, atol=1e-6)
        True
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
    """Raise unless s and its detail are floating, equal in shape and dtype, and have the dim."""
    check_floating(op, "s", s)
    _check_detail(op, s.dtype, s.shape, d, name, dim)


def check_axes(op: str, axes: str) -> None:
    """Raise unless the axes are x, y or both in either order."""
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
    """Raise unless every detail has the shape and dtype of its mean."""
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


# Without flatten and unflatten: PyTorch cannot batch their gradients.


def pairs(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The first and the second entries of the pairs along dim, in float32 or wider."""
    dim %= x.dim()
    x0, x1 = widen(x).reshape(*x.shape[:dim], x.shape[dim] // 2, 2, *x.shape[dim + 1 :]).unbind(dim + 1)
    return x0, x1


def interleave(x0: Tensor, x1: Tensor, dim: int) -> Tensor:
    """Join pairs along dim, the inverse of :func:`pairs`."""
    dim %= x0.dim()
    return torch.stack((x0, x1), dim + 1).reshape(*x0.shape[:dim], 2 * x0.shape[dim], *x0.shape[dim + 1 :])


def _dims(axes: str) -> list[int]:
    return [-1 if axis == "x" else -2 for axis in axes]
