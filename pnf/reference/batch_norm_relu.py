"""Batch normalisation followed by ReLU."""

from torch import Tensor

from pnf.reference._channels import check_statistics, per_channel, statistics
from pnf.reference._checks import check_floating
from pnf.reference._precision import widen


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
    each = widen(x)
    mean, var = statistics(each, mean, var)
    scale = weight.to(each.dtype) * (var + eps).rsqrt()
    y = (each - per_channel(mean, x)) * per_channel(scale, x) + per_channel(bias.to(each.dtype), x)
    return y.relu().to(x.dtype), mean.detach(), var.detach()


def check_batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None) -> None:
    """Raise the errors that :func:`batch_norm_relu` documents."""
    op = "batch_norm_relu"
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        check_floating(op, name, tensor)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be [B, C, ...], got {list(x.shape)}")
    channels = x.shape[1]
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            raise ValueError(f"{op}: {name} must be [{channels}], got {list(tensor.shape)}")
    check_statistics(op, x, channels, mean, var)
