"""The precision in which every op computes: float32, or float64 for float64; and bounds, the same in every PyTorch."""

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and of sums for tensors of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """Convert x to the dtype of arithmetic."""
    return x.to(wide(x.dtype))


def at_least(x: Tensor, bound: float) -> Tensor:
    """``max(x, bound)``, with the gradient of x at the bound itself, where ``clamp`` has none from PyTorch 2.15 on."""
    return torch.where(x < bound, bound, x)


def at_most(x: Tensor, bound: float) -> Tensor:
    """``min(x, bound)``, likewise."""
    return torch.where(x > bound, bound, x)
