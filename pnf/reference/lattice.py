"""The noise of a pair of dequantized pixels, dealt out anew: a part for its mean, an independent one for its detail.

A pixel of L levels with noise, ``x = (k + u) / L``, is what a flow models. A pair (a, b) with noise (p, q) has the
whole mean ``N = a + b`` and the whole detail ``e = a - b``. The plain mean and detail share both noises: where the
levels are known, as in a flat region, the mean still tells how far the detail reaches. A network that does not see it
to a hundredth of a level loses ``1 - log 2`` nats for each such pair. With

    w = (p - q) (2 - |p - q|)        v = min(p, q) / (1 - |p - q|)

w is uniform on (-1, 1), v is uniform on (0, 1), and they are independent: the map has the constant Jacobian 2. So

- ``(N + v) / (2 L - 1)`` is a pixel of the coarser image, which has ``2 L - 1`` levels and uniform noise.
- ``(e + w) / (2 L)`` is the detail of a pair with the mean ``(N + 1) / (2 L)``. Given N, all details ``e = -m, -m + 2,
  ..., m``, ``m = min(N, 2 L - 2 - N)``, with their noise fill (-m - 1, m + 1): all that two pixels in [0, 1] with this
  mean can have.

The coarser image is continuous in the pixels, beyond the bounds of their levels, too. Details jump there by a quarter
of a level at most.

This map is the package's own.
"""

import torch
from torch import Tensor

from pnf.reference import haar
from pnf.reference._checks import check_floating
from pnf.reference._precision import at_least, at_most, widen

LEAST = 2.0**-24
"""The least distance of w from its bounds in divisions."""


def lattice_split(
    x: Tensor,  # [..., 2n, ...]
    levels: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Split neighbouring pixels into the coarser image, and pairs that have whole means and the details of x.

    With the levels a, b and the noises p, q of a pair, and its v and w as above::

        coarser = (a + b + v) / (2 L - 1)        pair = (a + (1 + w) / 2) / L, (b + (1 - w) / 2) / L

    Levels are clamped to 0, ..., L - 1, v to [0, 1] and its divisor ``1 - |p - q|`` to at least ``2**-24``. Levels have
    no gradient.

    Args:
        x: a floating tensor with an even size along ``dim`` and values in [0, 1].
        levels: L, the number of levels of its pixels.
        dim: the axis along which the pairs lie.

    Returns:
        ``coarser``, of the shape of x with half the size along ``dim``, and ``pairs``, of the shape of x. The
        log-determinant of x -> (coarser, half differences of the pairs) is ``log(L / (2 L - 1))`` for each pair.

    Raises:
        TypeError: x is no floating tensor.
        ValueError: the size along ``dim`` is odd, or there is no level.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.lattice_split(torch.tensor([1.25, 3.5]) / 4, levels=4, dim=-1)
        (tensor([0.6190]), tensor([0.3203, 0.9297]))
    """
    haar.check_split("lattice_split", x, dim)
    check_levels("lattice_split", levels)
    scaled = levels * widen(x)
    whole = _whole(scaled, levels - 1)
    (a, b), (p, q) = haar.pairs(whole, dim), haar.pairs(scaled - whole, dim)
    gap = p - q
    width = 1 - gap.abs()
    v = _within_bounds(torch.minimum(p, q) / at_least(width, LEAST))
    w = gap * (1 + width)
    coarser = (a + b + v) / (2 * levels - 1)
    first, second = (a + (1 + w) / 2) / levels, (b + (1 - w) / 2) / levels
    return coarser.to(x.dtype), haar.interleave(first, second, dim).to(x.dtype)


def lattice_merge(
    coarser: Tensor,  # [..., n, ...]
    pairs: Tensor,  # [..., 2n, ...]
    levels: int,
    dim: int,
) -> Tensor:
    """Invert :func:`lattice_split`.

    With N and v of the coarser image, and ``a + (1 + w) / 2`` of the first pixel of a pair::

        |p - q| = 1 - sqrt(1 - |w|)        min(p, q) = v sqrt(1 - |w|)        x = (a + p) / L, (N - a + q) / L

    The second pixel of a pair follows from N, so it is not read. The level a is clamped to those that N can have, w to
    ``2**-24`` inside of [-1, 1], and v and x to [0, 1]. Levels have no gradient.

    Args:
        coarser: a floating tensor with values in [0, 1].
        pairs: of the dtype of coarser, and of its shape with twice the size along ``dim``.
        levels: L, the number of levels of the pixels of x.
        dim: the axis along which the pairs lie.

    Returns:
        x, of the shape of pairs, with values in [0, 1]. The log-determinant is ``log((2 L - 1) / L)`` for each pair.

    Raises:
        TypeError: coarser or pairs is no floating tensor, or the dtypes differ.
        ValueError: the shapes do not fit, there is no such dim, or there is no level.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x = torch.tensor([1.25, 3.5]) / 4
        >>> torch.allclose(ops.lattice_merge(*ops.lattice_split(x, 4, -1), 4, -1), x)
        True
    """
    check_merge("lattice_merge", coarser, pairs, dim)
    check_levels("lattice_merge", levels)
    scaled = (2 * levels - 1) * widen(coarser)
    total = _whole(scaled, 2 * levels - 2)
    v = _within_bounds(scaled - total)
    first = levels * haar.pairs(pairs, dim)[0]
    a = torch.minimum(_whole(first, levels - 1), total)
    a = torch.maximum(a, total - (levels - 1))
    w = at_most(at_least(2 * (first - a) - 1, LEAST - 1), 1 - LEAST)
    width = (1 - w.abs()).sqrt()
    least = v * width
    gap = w / (1 + width)
    first, second = a + least + gap.relu(), total - a + least + (-gap).relu()
    return _within_bounds(haar.interleave(first / levels, second / levels, dim)).to(coarser.dtype)


def check_levels(op: str, levels: int) -> None:
    """Raise unless there is a level."""
    if levels < 1:
        raise ValueError(f"{op}: levels must be at least 1, got {levels}")


def check_merge(op: str, coarser: Tensor, pairs: Tensor, dim: int) -> None:
    """Raise unless coarser and pairs are floating, of one dtype, and pairs has twice the size along dim."""
    check_floating(op, "coarser", coarser)
    check_floating(op, "pairs", pairs)
    if coarser.dtype != pairs.dtype:
        raise TypeError(f"{op}: pairs must have the dtype of coarser, {coarser.dtype}, got {pairs.dtype}")
    if not -coarser.dim() <= dim < coarser.dim():
        raise ValueError(f"{op}: coarser must have a dim {dim}, got {list(coarser.shape)}")
    shape = list(coarser.shape)
    shape[dim] *= 2
    if list(pairs.shape) != shape:
        raise ValueError(f"{op}: pairs must be {shape}, coarser with twice its dim {dim}, got {list(pairs.shape)}")


def _whole(scaled: Tensor, most: int) -> Tensor:
    return at_most(at_least(scaled.detach().floor(), 0.0), most)


def _within_bounds(x: Tensor) -> Tensor:
    return at_most(at_least(x, 0.0), 1.0)
