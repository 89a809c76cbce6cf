"""Weight normalisation of all convolutions of a network at once.

Source: Salimans and Kingma, "Weight normalization" (2016), equation 2. The magnitude is optional, since some layers of
Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016) have none.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from pnf.reference._checks import check_floating
from pnf.reference._precision import at_least, widen

LEAST_SQUARE = 1e-12
"""The least squared norm of a direction. Smaller ones are replaced by it."""


def weight_norm(
    directions: Sequence[Tensor],  # [O, ...] each
    magnitudes: Sequence[Tensor | None],  # [O, 1, ...] each
) -> list[Tensor]:
    """Normalise the weights of every layer: ``weight = magnitude * direction / ||direction||``.

    The norm is over all but dim 0. Its square is at least ``1e-12``, so that a direction of zeros gives zeros.

    Args:
        directions: the direction of each layer, ``[O, ...]``, floating, all of one dtype.
        magnitudes: the magnitude of each layer, ``[O, 1, ...]`` with the dims and the dtype of the direction; ``None``
            is 1.

    Returns:
        The weights, of the shapes and the dtype of the directions.

    Raises:
        TypeError: an argument is no list of floating tensors, or their dtypes differ.
        ValueError: the lists differ in length, or a magnitude has not one entry for each output channel.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.weight_norm([torch.tensor([[3.0, 4.0]])], [torch.tensor([[10.0]])])
        [tensor([[6., 8.]])]
    """
    check_weight_norm(directions, magnitudes)
    return [_weight(direction, magnitude) for direction, magnitude in zip(directions, magnitudes, strict=True)]


def check_weight_norm(directions: Sequence[Tensor], magnitudes: Sequence[Tensor | None]) -> None:
    """Raise the errors that :func:`weight_norm` documents."""
    if len(directions) != len(magnitudes):
        raise ValueError(
            f"weight_norm: magnitudes must be as many as directions, {len(directions)}, got {len(magnitudes)}"
        )
    for i, (direction, magnitude) in enumerate(zip(directions, magnitudes, strict=True)):
        check_floating("weight_norm", f"directions[{i}]", direction)
        if direction.dtype != directions[0].dtype:
            raise TypeError(
                f"weight_norm: directions[{i}] must have the dtype of the first, {directions[0].dtype}, "
                f"got {direction.dtype}"
            )
        if direction.dim() == 0:
            raise ValueError(f"weight_norm: directions[{i}] must be [O, ...], got []")
        if magnitude is None:
            continue
        if not isinstance(magnitude, Tensor) or magnitude.dtype != direction.dtype:
            got = magnitude.dtype if isinstance(magnitude, Tensor) else type(magnitude).__name__
            raise TypeError(f"weight_norm: magnitudes[{i}] must be None or a Tensor of {direction.dtype}, got {got}")
        want = [direction.shape[0], *(1,) * (direction.dim() - 1)]
        if list(magnitude.shape) != want:
            raise ValueError(f"weight_norm: magnitudes[{i}] must be {want}, got {list(magnitude.shape)}")


def _weight(direction: Tensor, magnitude: Tensor | None) -> Tensor:
    wide = widen(direction)
    rows = wide.reshape(wide.shape[0], math.prod(wide.shape[1:]))
    norm = at_least(rows.square().sum(1), LEAST_SQUARE).sqrt().view(-1, *(1,) * (wide.dim() - 1))
    scale = norm.reciprocal() if magnitude is None else magnitude.to(wide.dtype) / norm
    return (wide * scale).to(direction.dtype)
