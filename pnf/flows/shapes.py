"""Shapes and argument checks that the flows share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_shape(owner: str, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple, if it is ``(C, H, W)``, ``(C, D)`` or ``(D,)`` of positive sizes."""
    if isinstance(shape, int) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        raise TypeError(f"{owner}: {name} must be a sequence of integers, got {shape!r}")
    if len(shape) not in (1, 2, 3) or any(n < 1 for n in shape):
        raise ValueError(f"{owner}: {name} must be (C, H, W), (C, D) or (D,) with positive sizes, got {tuple(shape)}")
    return tuple(shape)


def check_choice(owner: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_positive(owner: str, name: str, value: int) -> None:
    """Raise unless the value is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {value}")


def check_batch(owner: str, name: str, x: Tensor, shape: Sequence[int], *, unit: bool = False) -> None:
    """Raise unless x is a floating batch of that shape and, if ``unit``, has its values in [0, 1].

    Values are looked at on the CPU only, where the look does not wait for a device, and not inside ``torch.vmap``.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{owner}: {name} must be a floating Tensor, got {got}")
    if x.shape[1:] != tuple(shape) or x.dim() != len(shape) + 1:
        raise ValueError(f"{owner}: {name} must be [B, {', '.join(map(str, shape))}], got {list(x.shape)}")
    if unit and x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
        low, high = torch.aminmax(x.detach())
        try:
            # Not "low < 0 or high > 1": that would let NaN through.
            valid = bool(low >= 0) and bool(high <= 1)
        except RuntimeError:
            return  # torch.vmap shows no values
        if not valid:
            raise ValueError(f"{owner}: {name} must have values in [0, 1], got values from {low:g} to {high:g}")


def as_channels(shape: Sequence[int] | None) -> tuple[int, ...]:
    """The shape with a channel dim in front: ``(D,)`` becomes ``(1, D)``."""
    assert shape is not None
    return (1, *shape) if len(shape) == 1 else tuple(shape)


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """``8 - log_prob / (D log 2)``, for 8-bit data dequantized to [0, 1]."""
    return 8 - log_prob / (dims * math.log(2))
