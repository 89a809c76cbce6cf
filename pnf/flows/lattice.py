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
"""

import torch
from torch import Tensor

_LEAST = 2.0**-24
"""The least distance of w from its bounds in divisions."""


def halve(
    x: Tensor,  # [..., 2n, ...], values in [0, 1]
    levels: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Return the coarser image ``[..., n, ...]``, and pairs with whole means, as x, that have the details of x.

    ``log |det d(coarser, detail of the pairs) / dx|`` is that of a plain pair plus :func:`log_det` for each pair.
    """
    scaled = levels * x
    whole = scaled.detach().floor().clamp(0, levels - 1)
    (a, b), (p, q) = _pair(whole, dim), _pair(scaled - whole, dim)
    gap = p - q
    width = 1 - gap.abs()
    v = _within_bounds(torch.minimum(p, q) / width.clamp(min=_LEAST))
    w = gap * (1 + width)
    coarser = (a + b + v) / (2 * levels - 1)
    return coarser, _unpair((a + (1 + w) / 2) / levels, (b + (1 - w) / 2) / levels, dim)


def whole_mean(
    coarser: Tensor,  # [..., n, ...]
    levels: int,
) -> Tensor:  # as coarser
    """The mean ``(N + 1) / (2 L)`` of the pairs of L levels, from the coarser image."""
    return (((2 * levels - 1) * coarser).floor().clamp(0, 2 * levels - 2) + 1) / (2 * levels)


def double(
    coarser: Tensor,  # [..., n, ...]
    pairs: Tensor,  # [..., 2n, ...]
    levels: int,
    dim: int,
) -> Tensor:  # as pairs
    """Invert :func:`halve`."""
    scaled = (2 * levels - 1) * coarser
    total = scaled.detach().floor().clamp(0, 2 * levels - 2)
    v = _within_bounds(scaled - total)
    first = levels * _pair(pairs, dim)[0]
    a = torch.maximum(torch.minimum(first.detach().floor(), total), torch.zeros_like(total)).clamp(max=levels - 1)
    a = torch.maximum(a, total - (levels - 1))
    w = (2 * (first - a) - 1).clamp(_LEAST - 1, 1 - _LEAST)
    width = (1 - w.abs()).sqrt()
    least = v * width
    gap = w / (1 + width)
    first, second = a + least + gap.relu(), total - a + least + (-gap).relu()
    return _within_bounds(_unpair(first / levels, second / levels, dim))


def _within_bounds(x: Tensor) -> Tensor:
    """``x.clamp(0, 1)``, with the gradient of x at 0 and 1. From PyTorch 2.15 on, ``clamp`` itself has none there."""
    return torch.where(x < 0, 0, torch.where(x > 1, 1, x))


def _pair(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    first, second = x.unflatten(dim, (-1, 2)).unbind(dim if dim < 0 else dim + 1)
    return first, second


def _unpair(first: Tensor, second: Tensor, dim: int) -> Tensor:
    return torch.stack((first, second), dim).flatten(dim - 1, dim)
