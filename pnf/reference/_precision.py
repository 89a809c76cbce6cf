"""The precision in which every op computes: float32, or float64 for float64."""

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and of sums for tensors of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """Convert x to the dtype of arithmetic."""
    return x.to(wide(x.dtype))
