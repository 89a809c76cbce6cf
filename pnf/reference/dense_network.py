"""The network of a dense coupling: linear layers with ReLU between them."""

from __future__ import annotations  # up to 2.9, torch.compile cannot trace a nested function's `Tensor | None`

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from pnf.reference._checks import check_floating


def dense_network(
    x: Tensor,  # [B, kept]
    condition: Tensor | None,  # [B, condition]
    weights: Sequence[Tensor],  # [O, I] each
    biases: Sequence[Tensor],  # [O] each
) -> Tensor:
    """Apply linear layers with ReLU between them to x and, behind it, the condition.

    ``h_0 = [x, condition]``, ``h_i = relu(weights[i - 1] h_{i - 1} + biases[i - 1])``, and the last layer without ReLU.

    Args:
        x: ``[B, kept]``, floating.
        condition: ``[B, condition]`` of the same dtype, or None.
        weights: a weight ``[O, I]`` for each layer, of the same dtype. The first one takes all features of x and the
            condition, each other one what the one before returns.
        biases: a bias ``[O]`` for each layer, of the same dtype.

    Returns:
        ``[B, O]`` of the last layer, of the same dtype.

    Raises:
        TypeError: an argument is no floating tensor, or their dtypes differ.
        ValueError: the lists or shapes do not fit together.

    Source: the PNF paper's dense couplings, which are three such layers.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> weights, biases = [torch.ones(3, 4), torch.ones(2, 3)], [torch.zeros(3), torch.ones(2)]
        >>> ops.dense_network(torch.ones(1, 2), torch.ones(1, 2), weights, biases)
        tensor([[13., 13.]])
    """
    check_dense_network(x, condition, weights, biases)
    return dense_layers(x, condition, weights, biases)[-1]


def dense_layers(
    x: Tensor, condition: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """The result of each layer of :func:`dense_network`."""
    found, h = [], joined(x, condition)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = linear(h, weight, bias)
        h = h if i + 1 == len(weights) else h.relu()
        found.append(h)
    return found


def joined(x: Tensor, condition: Tensor | None) -> Tensor:
    """What the first layer takes."""
    return x if condition is None else torch.cat((x, condition), 1)


def check_dense_network(
    x: Tensor, condition: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> None:
    """Raise the errors that :func:`dense_network` documents."""
    op = "dense_network"
    check_floating(op, "x", x)
    if x.dim() != 2:
        raise ValueError(f"{op}: x must be [B, kept], got {list(x.shape)}")
    if not weights or len(weights) != len(biases):
        got = f"{len(weights)} and {len(biases)}"
        raise ValueError(f"{op}: weights and biases must be as many, and at least one each, got {got}")
    batch, features = x.shape
    if condition is not None:
        _check("condition", condition, x)
        if condition.dim() != 2 or condition.shape[0] != batch:
            raise ValueError(f"{op}: condition must be [{batch}, condition], got {list(condition.shape)}")
        features += condition.shape[1]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _check("weights", weight, x, i)
        if weight.dim() != 2 or weight.shape[1] != features:
            raise ValueError(f"{op}: weights[{i}] must be [O, {features}], got {list(weight.shape)}")
        features = weight.shape[0]
        _check("biases", bias, x, i)
        if bias.shape != (features,):
            raise ValueError(f"{op}: biases[{i}] must be [{features}], got {list(bias.shape)}")


def _check(name: str, tensor: Tensor, x: Tensor, index: int | None = None) -> None:
    """Raise unless a tensor, perhaps one of a list, has the dtype of x."""
    if isinstance(tensor, Tensor) and tensor.dtype is x.dtype:
        return
    op, name = "dense_network", name if index is None else f"{name}[{index}]"
    check_floating(op, name, tensor)
    # Autocast makes the dtypes equal.
    if not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{op}: {name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")
