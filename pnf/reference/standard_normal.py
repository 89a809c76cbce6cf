"""Log-density of the standard normal prior."""

import math

import torch
from torch import Tensor


def standard_normal(
    z: Tensor,  # [B, ...]
) -> Tensor:
    """``log N(z; 0, I) = sum(-z**2 / 2 - log(2 pi) / 2)`` over all but the first dim.

    Args:
        z: ``[B, ...]``, floating.

    Returns:
        ``[B]`` in nats, in float32 or wider.

    Raises:
        TypeError: z is no floating tensor.
        ValueError: z has no dims.
    """
    check_standard_normal(z)
    wide = z.to(torch.promote_types(z.dtype, torch.float32)).reshape(z.shape[0], math.prod(z.shape[1:]))
    return -0.5 * (wide.square().sum(1) + wide.shape[1] * math.log(2 * math.pi))


def check_standard_normal(z: Tensor) -> None:
    """Raise the errors that :func:`standard_normal` documents."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"standard_normal: z must be a floating Tensor, got {got}")
    if z.dim() == 0:
        raise ValueError("standard_normal: z must be [B, ...], got []")
