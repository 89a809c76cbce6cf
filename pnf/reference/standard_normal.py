"""Log-density of the standard normal prior."""

import math

from torch import Tensor

from pnf.reference._checks import check_floating
from pnf.reference._precision import widen


def standard_normal(
    z: Tensor,  # [B, ...]
) -> Tensor:
    """Sum the log-density over all but the first dim: ``log N(z; 0, I) = sum(-z**2 / 2 - log(2 pi) / 2)``.

    Args:
        z: ``[B, ...]``, floating.

    Returns:
        ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: z is no floating tensor.
        ValueError: z has no dims.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.standard_normal(torch.zeros(2, 3))  # -3 log(2 pi) / 2
        tensor([-2.7568, -2.7568])
    """
    check_standard_normal(z)
    rows = widen(z).reshape(z.shape[0], math.prod(z.shape[1:]))
    return -0.5 * (rows.square().sum(1) + rows.shape[1] * math.log(2 * math.pi))


def check_standard_normal(z: Tensor) -> None:
    """Raise the errors that :func:`standard_normal` documents."""
    check_floating("standard_normal", "z", z)
    if z.dim() == 0:
        raise ValueError("standard_normal: z must be [B, ...], got []")
