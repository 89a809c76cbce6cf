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
    """Normalise each channel and apply ReLU: ``y = relu((x - mean) / sqrt(var + eps) * weight + bias)``.

    By default ``mean`` and ``var`` are those of the batch, over all dims except the channels, and gradients flow
    through them. This variance is biased: its divisor is the number n of entries. Given ones are constants.

    Args:
        x: ``[B, C, *spatial]``, floating.
        weight, bias: ``[C]``, floating.
        mean, var: ``[C]``, floating, both or neither.
        eps: added to the variance.

    Returns:
        ``y`` of the shape and dtype of x, and the ``mean`` and ``var`` used, ``[C]`` in float32 or wider, in new memory
        and without a gradient. (PyTorch's layers keep ``var * n / (n - 1)`` as their running variance.)

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the shapes do not fit together, only one of ``mean`` and ``var`` is given, or x has no entries and
            neither is given.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> y, mean, var = ops.batch_norm_relu(torch.tensor([[[1.0, 3.0]]]), torch.ones(1), torch.zeros(1), eps=0.0)
        >>> y, mean, var
        (tensor([[[0., 1.]]]), tensor([2.]), tensor([1.]))
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
