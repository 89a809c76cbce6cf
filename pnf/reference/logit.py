"""The logit preprocessing of pixels, with its log-determinant.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 4.1. Their
``alpha + (1 - alpha) x`` would reach logit(1), so this is ``alpha + (1 - 2 alpha) x``.
"""

import math

from torch import Tensor
from torch.nn.functional import softplus

from pnf.reference._checks import check_floating
from pnf.reference._precision import at_least, widen

BOUNDARY = 2.0**-24
"""The least distance of p from 0 and 1."""


def logit(
    x: Tensor,  # [B, ...]
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Map pixels to real numbers: ``y = log p - log(1 - p)`` with ``p = alpha + (1 - 2 alpha) x``.

    The log-determinant is ``softplus(y) + softplus(-y) + log(1 - 2 alpha)`` for each entry.

    Args:
        x: ``[B, ...]``, floating, with values in [0, 1].
        alpha: in [0, 1/2), the distance of p from 0 and 1.

    Returns:
        ``y`` of the shape and dtype of x, and ``log_det`` ``[B]`` in nats, in float32 or wider. Both are finite for
        every finite x.

    Raises:
        TypeError: x is no floating tensor.
        ValueError: alpha is outside [0, 1/2), or x has no dims.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> y, log_det = ops.logit(torch.tensor([[0.5]]), alpha=0.0)
        >>> y, log_det  # log 4
        (tensor([[0.]]), tensor([1.3863]))
    """
    check_logit("logit", x, alpha)
    each = widen(x)
    # log1p(-p) would show the rounding of p near white.
    p = at_least(alpha + (1 - 2 * alpha) * each, BOUNDARY)
    q = at_least(alpha + (1 - 2 * alpha) * (1 - each), BOUNDARY)
    y = p.log() - q.log()
    return y.to(x.dtype), _log_det(y, alpha)


def logit_inverse(
    y: Tensor,  # [B, ...]
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Invert :func:`logit`: ``x = (sigmoid(y) - alpha) / (1 - 2 alpha)``, with the log-determinant.

    Args:
        y: ``[B, ...]``, floating.
        alpha: in [0, 1/2).

    Returns:
        ``x`` of the shape and dtype of y, in ``[-alpha, 1 - alpha] / (1 - 2 alpha)``, which is a little wider than
        [0, 1]; and ``log_det`` ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: y is no floating tensor.
        ValueError: alpha is outside [0, 1/2), or y has no dims.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x, log_det = ops.logit_inverse(torch.zeros(1, 1), alpha=0.0)
        >>> x, log_det
        (tensor([[0.5000]]), tensor([-1.3863]))
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
    # Beyond its threshold PyTorch's softplus is the identity. The error of the default, 20, shows in float64.
    each = softplus(y, threshold=40) + softplus(-y, threshold=40) + math.log(1 - 2 * alpha)
    return each.reshape(y.shape[0], math.prod(y.shape[1:])).sum(1)
