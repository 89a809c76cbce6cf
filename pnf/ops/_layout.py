"""Memory layouts: the kernels see tensors that are contiguous, or have their channels last."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """X without gaps in its memory, and whether its channels come last there."""
    if x.is_contiguous():
        return x, False
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        return x, True
    return x.contiguous(), False


def dense_as(x: Tensor, last: bool) -> Tensor:
    """X without gaps in its memory, with its channels last there or not."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def empty(x: Tensor, shape: Sequence[int], last: bool = False) -> Tensor:
    """A tensor like x, of that shape and layout."""
    if last:
        return x.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
    return x.new_empty(shape)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and of sums: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows(x: Tensor) -> tuple[int, int]:
    """Examples, and entries of one."""
    return x.shape[0], math.prod(x.shape[1:])
