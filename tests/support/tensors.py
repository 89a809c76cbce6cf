"""Random arguments."""

import torch
from torch import Tensor


def normal(*shape: int) -> Tensor:
    """Standard normal numbers, in float64."""
    return torch.randn(shape, dtype=torch.float64)
