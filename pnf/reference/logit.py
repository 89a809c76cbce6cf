"""The logit preprocessing of pixels, with its log-determinant.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 4.1, with
``alpha + (1 - 2 alpha) x`` in place of ``alpha + (1 - alpha) x``, which would reach logit(1).
"""

import math

from torch import Tensor
from torch.nn.functional import softplus

from pnf.reference._checks import check_floating
from pnf.reference._precision import widen

BOUNDARY = 2.0**-24
"""Least distance from 0 and 1 at which the logit is taken."""


def logit(
    x: Tensor,  # [B, ...]
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """``y = log p - log(1 - p)`` with ``p = alpha + (1 - 2 alpha) x``, and the log-determinant.

    The log-determinant is ``softplus(y) + softplus(-y) + log(1 - 2 alpha)`` for each entry.

    Args:
        x: ``[B, ...]``, floating, with values in [0, 1].
        alpha: in [0, 1/2), the distance that is kept from the ends of the interval.

    Returns:
        ``y, log_det``: of the shape and dtype of x; ``[B]`` in nats, in float32 or wider. Finite for every finite x.

    Raises:
        TypeError: x is no floating tensor.
        ValueError: alpha is outside [0, 1/2), or x has no dims.
    """
    check_logit("logit", x, alpha)
    each = widen(x)
    # Not log1p(-p): near white the rounding of p would show.
    p = (alpha + (1 - 2 * alpha) * each).clamp(min=BOUNDARY)
    q = (alpha + (1 - 2 * alpha) * (1 - each)).clamp(min=BOUNDARY)
    y = p.log() - q.log()
    return y.to(x.dtype), _log_det(y, alpha)


def logit_inverse(
    y: Tensor,  # [B, ...]
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`logit`: ``x = (sigmoid(y) - alpha) / (1 - 2 alpha)``, and the log-determinant.

    Args:
        y: ``[B, ...]``, floating.
        alpha: in [0, 1/2).

    Returns:
        ``x, log_det``: of the shape and dtype of y, in ``[-alpha, 1 - alpha] / (1 - 2 alpha)``, which is wider than
        [0, 1] by what alpha keeps free; ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: y is no floating tensor.
        ValueError: alpha is outside [0, 1/2), or y has no dims.
    """
    check_logit("logit_inverse", y, alpha)
    each = widen(y)
    return ((each.sigmoid() - alpha) / (1 - 2 * alpha)).to(y.dtype), -_log_det(each, alpha)


def check_logit(op: str, x: Tensor, alpha: float) -> None:
    """Raise unless the input is a floating batch and alpha is in [0, 1/2)."""
    check_floating(op, "the input", x)
    if x.dim() == 0:
        raise ValueError(f"{op}: the input must be [B, ...], got []")
    if not 0 <= alpha < 0.5:
        raise ValueError(f"{op}: alpha must be in [0, 0.5), got {alpha}")


def _log_det(y: Tensor, alpha: float) -> Tensor:
    # Beyond its threshold softplus is taken to be the identity; the default one, 20, shows in float64.
    each = softplus(y, threshold=40) + softplus(-y, threshold=40) + math.log(1 - 2 * alpha)
    return each.reshape(y.shape[0], math.prod(y.shape[1:])).sum(1)
