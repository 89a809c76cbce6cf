"""Batch normalisation followed by ReLU."""

import torch
from torch import Tensor


def batch_norm_relu(
    x: Tensor,  # [B, C, *spatial]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    mean: Tensor | None = None,  # [C]
    var: Tensor | None = None,  # [C]
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = relu((x - mean) / sqrt(var + eps) * weight + bias)`` for each channel.

    Without ``mean`` and ``var`` they are those of the batch, over all dims but the channels, and gradients flow through
    them; the variance is biased, divided by the number n of entries. With them they are constants.

    Args:
        x: ``[B, C, *spatial]``, floating.
        weight, bias: ``[C]``, floating.
        mean, var: ``[C]``, floating, both or neither.
        eps: added to the variance.

    Returns:
        ``y, mean, var``: y of the shape and dtype of x; the statistics that were used, ``[C]`` in float32 or wider, in
        new memory and without a gradient. (PyTorch's layers keep ``var * n / (n - 1)`` as their running variance.)

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes that do not belong together, one of ``mean`` and ``var`` without the other, or no entries to
            take statistics of.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1.
    """
    check_batch_norm_relu(x, weight, bias, mean, var)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, var = statistics(wide, mean, var)
    scale = weight.to(wide.dtype) * (var + eps).rsqrt()
    y = (wide - per_channel(mean, x)) * per_channel(scale, x) + per_channel(bias.to(wide.dtype), x)
    return y.relu().to(x.dtype), mean.detach(), var.detach()


def check_batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None) -> None:
    """Raise the errors that :func:`batch_norm_relu` documents."""
    op = "batch_norm_relu"
    check_floating(op, {"x": x, "weight": weight, "bias": bias})
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be [B, C, ...], got {list(x.shape)}")
    channels = x.shape[1]
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            raise ValueError(f"{op}: {name} must be [{channels}], got {list(tensor.shape)}")
    check_statistics(op, x, channels, mean, var)


def check_floating(op: str, tensors: dict[str, Tensor]) -> None:
    """Raise unless every argument is a floating tensor."""
    for name, tensor in tensors.items():
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{op}: {name} must be a floating Tensor, got {got}")


def check_statistics(op: str, x: Tensor, channels: int, mean: Tensor | None, var: Tensor | None) -> None:
    """Raise unless the statistics of so many channels are given, or x has some."""
    if mean is None and var is None:
        if channels and x.numel() == 0:
            raise ValueError(
                f"{op}: x must have at least one entry per channel, or mean and var be given, got {list(x.shape)}"
            )
        return
    if mean is None or var is None:
        raise ValueError(f"{op}: mean and var must be given together, got {'var' if mean is None else 'mean'} only")
    check_floating(op, {"mean": mean, "var": var})
    for name, tensor in (("mean", mean), ("var", var)):
        if tensor.shape != (channels,):
            raise ValueError(f"{op}: {name} must be [{channels}], got {list(tensor.shape)}")


def statistics(x: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, or the given ones as constants in the dtype of x."""
    if mean is None or var is None:
        mean = x.mean(other_dims(x))
        return mean, (x - per_channel(mean, x)).square().mean(other_dims(x))
    return own(mean.detach(), x.dtype), own(var.detach(), x.dtype)


def own(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy of that dtype."""
    return x.to(dtype).clone(memory_format=torch.contiguous_format)


def other_dims(x: Tensor) -> list[int]:
    """All dims but that of the channels."""
    return [0, *range(2, x.dim())]


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter ``[C]`` that broadcasts against x."""
    return parameter.view(-1, *(1,) * (x.dim() - 2))
