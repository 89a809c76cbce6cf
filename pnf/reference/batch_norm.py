"""Batch normalisation as an invertible layer, with its log-determinant.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.7 and appendix E.
"""

import math

from torch import Tensor

from pnf.reference._channels import check_statistics, per_channel, statistics
from pnf.reference._checks import check_floating
from pnf.reference._precision import widen


def batch_norm(
    x: Tensor,  # [B, C, *spatial]
    log_det: Tensor,  # [B]
    mean: Tensor | None = None,  # [C]
    var: Tensor | None = None,  # [C]
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each channel: ``y = (x - mean) / sqrt(var + eps)``, ``log_det - sites / 2 * sum(log(var + eps))``.

    ``sites`` is the number of entries of a channel in one example. By default ``mean`` and ``var`` are those of the
    batch, over all dims except the channels, and gradients flow through them. This variance is biased. Given ones are
    constants.

    Args:
        x: ``[B, C, *spatial]``, floating.
        log_det: ``[B]`` in nats. The log-determinant is added to it.
        mean, var: ``[C]``, floating, both or neither.
        eps: added to the variance.

    Returns:
        ``y`` of the shape and dtype of x, ``log_det`` ``[B]`` in float32 or wider, and the ``mean`` and ``var`` used,
        ``[C]`` in float32 or wider, in new memory and without a gradient.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the shapes do not fit together, only one of ``mean`` and ``var`` is given, or x has no entries and
            neither is given.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> y, log_det, mean, var = ops.batch_norm(torch.tensor([[[1.0, 5.0]]]), torch.zeros(1), eps=0.0)
        >>> y, log_det  # 2 sites * -log(2)
        (tensor([[[-1.,  1.]]]), tensor([-1.3863]))
    """
    check_batch_norm(x, log_det, mean, var)
    each = widen(x)
    mean, var = statistics(each, mean, var)
    y = (each - per_channel(mean, x)) * per_channel((var + eps).rsqrt(), x)
    gain = -0.5 * math.prod(x.shape[2:]) * (var + eps).log().sum()
    return y.to(x.dtype), log_det + gain, mean.detach(), var.detach()


def check_batch_norm(x: Tensor, log_det: Tensor, mean: Tensor | None, var: Tensor | None) -> None:
    """Raise the errors that :func:`batch_norm` documents."""
    op = "batch_norm"
    for name, tensor in (("x", x), ("log_det", log_det)):
        check_floating(op, name, tensor)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be [B, C, ...], got {list(x.shape)}")
    if log_det.shape != x.shape[:1]:
        raise ValueError(f"{op}: log_det must be [{x.shape[0]}], got {list(log_det.shape)}")
    check_statistics(op, x, x.shape[1], mean, var)
