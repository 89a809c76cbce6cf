"""Convolutions of the conditioner networks."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pnf.reference.batch_norm_relu import check_floating


def convolution(
    x: Tensor,  # [B, I, H, W]
    weight: Tensor,  # [O, I, h, w]
    bias: Tensor,  # [O]
    add: Tensor | None = None,  # [B, O, H, W]
    relu: bool = False,
) -> Tensor:
    """A convolution (as in all of deep learning, a cross-correlation) with zeros around x that keep its size.

    ``y[b, o, i, j] = add[b, o, i, j] + bias[o] + sum weight[o, c, k, l] x[b, c, i + k - h // 2, j + l - w // 2]``, the
    sum over c, k and l, and with ``relu`` the larger one of that and 0.

    Args:
        x: ``[B, I, H, W]``, floating.
        weight: ``[O, I, h, w]`` of the same dtype, h and w odd.
        bias: ``[O]`` of the same dtype.
        add: ``[B, O, H, W]`` of the same dtype, or None for zeros.
        relu: whether negative results become 0.

    Returns:
        ``[B, O, H, W]`` of the same dtype.

    Raises:
        TypeError: an argument is no floating tensor, or their dtypes differ.
        ValueError: shapes that do not belong together, or an even h or w.
    """
    check_convolution(x, weight, bias, add)
    if weight.numel():
        y = conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
    else:
        # PyTorch refuses sums of nothing, and sums for nothing.
        y = bias.view(-1, 1, 1).expand(x.shape[0], -1, *x.shape[2:]).contiguous()
    y = y if add is None else add + y
    return y.relu() if relu else y


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> None:
    """Raise the errors that :func:`convolution` documents."""
    op = "convolution"
    tensors = {"x": x, "weight": weight, "bias": bias} | ({} if add is None else {"add": add})
    check_floating(op, tensors)
    # Autocast makes the dtypes equal.
    if not torch.is_autocast_enabled(x.device.type):
        for name, tensor in tensors.items():
            if tensor.dtype != x.dtype:
                raise TypeError(f"{op}: {name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")
    if x.dim() != 4:
        raise ValueError(f"{op}: x must be [B, I, H, W], got {list(x.shape)}")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1] or not weight.shape[2] % 2 or not weight.shape[3] % 2:
        raise ValueError(
            f"{op}: weight must be [O, {x.shape[1]}, h, w] with odd sizes h and w, got {list(weight.shape)}"
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if add is not None and list(add.shape) != [x.shape[0], weight.shape[0], *x.shape[2:]]:
        raise ValueError(
            f"{op}: add must be {[x.shape[0], weight.shape[0], *x.shape[2:]]}, as the result, got {list(add.shape)}"
        )
