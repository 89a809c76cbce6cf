"""Parameters and statistics of channels, for ``x [B, C, *spatial]``."""

import torch
from torch import Tensor

from pnf.reference._checks import check_floating


def check_statistics(
    op: str, x: Tensor, channels: int, mean: Tensor | None, var: Tensor | None, entries: int | None = None
) -> None:
    """Raise unless mean and var are given for each channel, or x has entries of it, by default all of x."""
    if mean is None and var is None:
        if channels and (x.numel() if entries is None else entries) == 0:
            raise ValueError(
                f"{op}: x must have at least one entry per channel, or mean and var be given, got {list(x.shape)}"
            )
        return
    if mean is None or var is None:
        raise ValueError(f"{op}: mean and var must be given together, got {'var' if mean is None else 'mean'} only")
    check_floating(op, "mean", mean)
    check_floating(op, "var", var)
    for name, tensor in (("mean", mean), ("var", var)):
        if tensor.shape != (channels,):
            raise ValueError(f"{op}: {name} must be [{channels}], got {list(tensor.shape)}")


def statistics(x: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel; or the given ones, as constants in the dtype of x."""
    if mean is None or var is None:
        mean = x.mean(other_dims(x))
        return mean, (x - per_channel(mean, x)).square().mean(other_dims(x))
    return own(mean.detach(), x.dtype), own(var.detach(), x.dtype)


def own(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy of x in another dtype."""
    return x.to(dtype).clone(memory_format=torch.contiguous_format)


def other_dims(x: Tensor) -> list[int]:
    """All dims except the channels."""
    return [0, *range(2, x.dim())]


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """The view of a parameter ``[C]`` that broadcasts against x."""
    return parameter.view(-1, *(1,) * (x.dim() - 2))
