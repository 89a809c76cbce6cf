"""Memory layouts: kernels take tensors that are contiguous or have their channels last."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The memory formats that PyTorch checks in one call, by the number of dims.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def has_channels_last(x: Tensor) -> bool:
    """Whether the memory of x has no gaps and the channels come last in it."""
    memory_format = CHANNELS_LAST.get(x.dim())
    if memory_format is not None:
        return x.is_contiguous(memory_format=memory_format)
    return x.dim() > 2 and x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return x, copied if its memory has gaps, and whether its channels come last in memory."""
    if x.is_contiguous():
        return x, False
    if has_channels_last(x):
        return x, True
    return x.contiguous(), False


def dense_as(x: Tensor, last: bool) -> Tensor:
    """Return x, copied unless its memory has no gaps and the wanted layout."""
    if not last:
        return x.contiguous()
    return x if has_channels_last(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def empty(x: Tensor, shape: Sequence[int], last: bool = False) -> Tensor:
    """An empty tensor like x, of another shape and layout."""
    if not last:
        return x.new_empty(shape)
    if len(shape) == 4:
        _, channels, height, width = shape
        return x.new_empty_strided(shape, (height * width * channels, 1, width * channels, channels))
    strides, stride = [], shape[1]
    for size in reversed(shape[2:]):
        strides.append(stride)
        stride *= size
    return x.new_empty_strided(shape, (stride, 1, *reversed(strides)))


def empty_like(x: Tensor, last: bool = False) -> Tensor:
    """An empty tensor of the shape of x and a layout, faster than :func:`empty`."""
    memory_format = CHANNELS_LAST.get(x.dim()) if last else torch.contiguous_format
    return empty(x, x.shape, last) if memory_format is None else torch.empty_like(x, memory_format=memory_format)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x.to(dtype)``, without the microsecond that this takes even for an equal dtype."""
    return x if x.dtype is dtype else x.to(dtype)


def rows(x: Tensor) -> tuple[int, int]:
    """(batch size, entries of an example)."""
    return x.shape[0], math.prod(x.shape[1:])


def scaled(shape: Sequence[int], dim: int, numerator: int, denominator: int = 1) -> list[int]:
    """The shape with its size along dim scaled."""
    sizes = list(shape)
    sizes[dim] = sizes[dim] * numerator // denominator
    return sizes


def runs(x: Tensor, dim: int) -> tuple[int, int]:
    """(pairs, run), where x is [pairs, 2, run] in memory."""
    entries, run = x.numel(), x.stride(dim)
    return entries // (2 * run) if entries else 0, run
