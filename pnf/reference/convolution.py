"""Convolution of the conditioner networks."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pnf.reference._checks import check_floating


def convolution(
    x: Tensor,  # [B, I, H, W]
    weight: Tensor,  # [O, I, h, w]
    bias: Tensor,  # [O]
    add: Tensor | None = None,  # [B, O, H, W]
    relu: bool = False,
) -> Tensor:
    """Convolve x (in truth a cross-correlation, as in all of deep learning), with zeros around it that keep its size.

    ``y[b, o, i, j] = add[b, o, i, j] + bias[o] + sum weight[o, c, k, l] x[b, c, i + k - h // 2, j + l - w // 2]``, with
    the sum over c, k and l. With ``relu``, negative results become 0.

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
        ValueError: the shapes do not fit together, or h or w is even.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.convolution(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.zeros(1))
        tensor([[[[4., 6., 4.],
                  [6., 9., 6.],
                  [4., 6., 4.]]]])
    """
    check_convolution(x, weight, bias, add)
    if weight.numel():
        y = conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
    else:
        # PyTorch refuses convolutions without inputs or outputs.
        y = bias.view(-1, 1, 1).expand(x.shape[0], -1, *x.shape[2:]).contiguous()
    y = y if add is None else add + y
    return y.relu() if relu else y


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> None:
    """Raise the errors that :func:`convolution` documents."""
    op = "convolution"
    tensors = {"x": x, "weight": weight, "bias": bias} | ({} if add is None else {"add": add})
    for name, tensor in tensors.items():
        check_floating(op, name, tensor)
    dtype = x.dtype
    for name, tensor in tensors.items():
        # Autocast makes the dtypes equal.
        if tensor.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{op}: {name} must have the dtype of x, {dtype}, got {tensor.dtype}")
    if x.dim() != 4:
        raise ValueError(f"{op}: x must be [B, I, H, W], got {list(x.shape)}")
    batch, inputs, height, width = x.shape
    outputs, of_inputs, *size = weight.shape if weight.dim() == 4 else (0, 0, 0, 0)
    if of_inputs != inputs or not size[0] % 2 or not size[1] % 2:
        raise ValueError(f"{op}: weight must be [O, {inputs}, h, w] with odd sizes h and w, got {list(weight.shape)}")
    if bias.shape != (outputs,):
        raise ValueError(f"{op}: bias must be [{outputs}], got {list(bias.shape)}")
    if add is not None and add.shape != (batch, outputs, height, width):
        want = [batch, outputs, height, width]
        raise ValueError(f"{op}: add must be {want}, as the result, got {list(add.shape)}")
