"""ActNorm: an affine map of each channel, with its log-determinant.

Source: Kingma and Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions" (2018), section 3.1.
"""

import math

from torch import Tensor

from pnf.reference._channels import per_channel
from pnf.reference._checks import check_floating
from pnf.reference._precision import wide


def act_norm(
    x: Tensor,  # [B, C, *spatial]
    shift: Tensor,  # [C]
    log_scale: Tensor,  # [C]
    log_det: Tensor,  # [B]
) -> tuple[Tensor, Tensor]:
    """Normalise each channel: ``y = (x + shift) * exp(log_scale)``, ``log_det + sites * sum(log_scale)``.

    ``sites`` is the number of entries of a channel in one example: the product of the spatial sizes, or 1 without any.

    Args:
        x: ``[B, C, *spatial]``, floating.
        shift, log_scale: ``[C]``, floating.
        log_det: ``[B]`` in nats. The log-determinant is added to it.

    Returns:
        ``y`` of the shape and dtype of x, and ``log_det`` ``[B]`` in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the shapes do not fit together.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x, shift, log_scale = torch.ones(1, 2, 3), torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 0.5])
        >>> y, log_det = ops.act_norm(x, shift, log_scale, torch.zeros(1))
        >>> log_det  # 3 sites * (0 + 0.5)
        tensor([1.5000])
    """
    check_act_norm("act_norm", x, shift, log_scale, log_det)
    each, shift, log_scale = _widened(x, shift, log_scale)
    y = (each + per_channel(shift, x)) * per_channel(log_scale.exp(), x)
    return y.to(x.dtype), log_det + _gain(x, log_scale)


def act_norm_inverse(
    y: Tensor,  # [B, C, *spatial]
    shift: Tensor,  # [C]
    log_scale: Tensor,  # [C]
    log_det: Tensor,  # [B]
) -> tuple[Tensor, Tensor]:
    """Invert :func:`act_norm`: ``x = y * exp(-log_scale) - shift``, ``log_det - sites * sum(log_scale)``.

    Args:
        y: ``[B, C, *spatial]``, floating.
        shift, log_scale, log_det: as for :func:`act_norm`.

    Returns:
        ``x`` of the shape and dtype of y, and ``log_det`` ``[B]`` in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the shapes do not fit together.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> y, shift, log_scale = torch.zeros(1, 2, 3), torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 0.5])
        >>> x, log_det = ops.act_norm_inverse(y, shift, log_scale, torch.zeros(1))
        >>> x[0, :, 0], log_det
        (tensor([ 1., -1.]), tensor([-1.5000]))
    """
    check_act_norm("act_norm_inverse", y, shift, log_scale, log_det)
    each, shift, log_scale = _widened(y, shift, log_scale)
    x = each * per_channel((-log_scale).exp(), y) - per_channel(shift, y)
    return x.to(y.dtype), log_det - _gain(y, log_scale)


def check_act_norm(op: str, x: Tensor, shift: Tensor, log_scale: Tensor, log_det: Tensor) -> None:
    """Raise the errors that :func:`act_norm` documents."""
    for name, tensor in (("x", x), ("shift", shift), ("log_scale", log_scale), ("log_det", log_det)):
        check_floating(op, name, tensor)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be [B, C, ...], got {list(x.shape)}")
    batch, channels = x.shape[:2]
    for name, tensor in (("shift", shift), ("log_scale", log_scale)):
        if tensor.shape != (channels,):
            raise ValueError(f"{op}: {name} must be [{channels}], got {list(tensor.shape)}")
    if log_det.shape != (batch,):
        raise ValueError(f"{op}: log_det must be [{batch}], got {list(log_det.shape)}")


def _widened(*tensors: Tensor) -> list[Tensor]:
    """Convert all tensors to the dtype of arithmetic of the first."""
    return [tensor.to(wide(tensors[0].dtype)) for tensor in tensors]


def _gain(x: Tensor, log_scale: Tensor) -> Tensor:
    """The log-determinant of :func:`act_norm`, ``[B]``."""
    return (math.prod(x.shape[2:]) * log_scale.sum()).expand(x.shape[0])
