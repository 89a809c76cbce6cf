"""Batch normalisation as an invertible layer, with its log-determinant.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.7 and appendix E.
"""

import math

from torch import Tensor

from pnf.reference._channels import check_statistics, per_channel, statistics
from pnf.reference._checks import check_floating
from pnf.reference._precision import widen
from pnf.reference.masking import check_mask, mask_pack, mask_unpack, rest_of


def batch_norm(
    x: Tensor,  # [B, C, *spatial]
    log_det: Tensor,  # [B]
    mean: Tensor | None = None,  # [C]
    var: Tensor | None = None,  # [C]
    eps: float = 1e-4,
    mask: str | None = None,
    parity: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each channel: ``y = (x - mean) / sqrt(var + eps)``, ``log_det - sites / 2 * sum(log(var + eps))``.

    ``sites`` is the number of entries of a channel in one example. By default ``mean`` and ``var`` are those of the
    batch, over all dims except the channels, and gradients flow through them. This variance is biased. Given ones are
    constants. With a mask the half that it keeps stays as it is, and all else is said of the other half.

    Args:
        x: ``[B, C, *spatial]``, floating.
        log_det: ``[B]`` in nats. The log-determinant is added to it.
        mean, var: ``[C]``, or ``[C / 2]`` with a channel mask; floating, both or neither.
        eps: added to the variance.
        mask: ``"checkerboard"``, ``"channel"`` or None, see :func:`mask_pack`.
        parity: 0 or 1, the half to keep.

    Returns:
        ``y`` of the shape and dtype of x, ``log_det`` ``[B]`` in float32 or wider, and the ``mean`` and ``var`` used,
        of their shape in float32 or wider, in new memory and without a gradient.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the shapes do not fit together, only one of ``mean`` and ``var`` is given, neither is given where
            nothing is to be normalised, or the mask is unknown or does not fit x.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> y, log_det, mean, var = ops.batch_norm(torch.tensor([[[1.0, 5.0]]]), torch.zeros(1), eps=0.0)
        >>> y, log_det  # 2 sites * -log(2)
        (tensor([[[-1.,  1.]]]), tensor([-1.3863]))
    """
    check_batch_norm(x, log_det, mean, var, mask, parity)
    if mask is not None:
        kept, rest = mask_pack(x, mask, parity)
        rest, log_det, mean, var = batch_norm(rest, log_det, mean, var, eps)
        return mask_unpack(kept, rest, mask, parity, x.shape[2:]), log_det, mean, var
    each = widen(x)
    mean, var = statistics(each, mean, var)
    y = (each - per_channel(mean, x)) * per_channel((var + eps).rsqrt(), x)
    gain = -0.5 * math.prod(x.shape[2:]) * (var + eps).log().sum()
    return y.to(x.dtype), log_det + gain, mean.detach(), var.detach()


def check_batch_norm(
    x: Tensor, log_det: Tensor, mean: Tensor | None, var: Tensor | None, mask: str | None, parity: int
) -> None:
    """Raise the errors that :func:`batch_norm` documents."""
    op = "batch_norm"
    for name, tensor in (("x", x), ("log_det", log_det)):
        check_floating(op, name, tensor)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be [B, C, ...], got {list(x.shape)}")
    if log_det.shape != x.shape[:1]:
        raise ValueError(f"{op}: log_det must be [{x.shape[0]}], got {list(log_det.shape)}")
    if mask is not None:
        check_mask(op, x, mask, parity)
    channels, sites = rest_of(x, mask, parity)
    check_statistics(op, x, channels, mean, var, x.shape[0] * sites)
