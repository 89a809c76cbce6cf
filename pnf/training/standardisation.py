"""Standardisation of real data, since networks learn best from numbers near 1.

A flow is trained on ``y = (x - mean) / std``. The density of the data itself is then, with a sum over all dimensions,
``log p(x) = log p(y) - sum log std``.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pnf.data import DataError, Reals


@dataclass(frozen=True)
class Standardisation:
    """An affine map of each channel of an example, or of each entry of a vector.

    Attributes:
        shape: the shape of an example, ``(D,)``, ``(C, D)`` or ``(C, H, W)``.
        mean: the mean of each channel or entry.
        std: its standard deviation, positive.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(
        self,
        x: Tensor,  # [N, *shape]
    ) -> Tensor:
        """``(x - mean) / std``, computed in float64."""
        return ((x.double() - self._along(self.mean)) / self._along(self.std)).to(x.dtype)

    def invert(
        self,
        y: Tensor,  # [N, *shape]
    ) -> Tensor:
        """``mean + std y``, computed in float64."""
        return (self._along(self.mean) + y.double() * self._along(self.std)).to(y.dtype)

    @property
    def log_det(self) -> float:
        """``-sum log std`` over all dimensions: the log-determinant of x -> y, in nats."""
        return -math.prod(self.shape[1:]) * sum(map(math.log, self.std))

    def of(self, reals: Reals) -> Reals:
        """Standardise examples.

        Raises:
            DataError: they have another shape.
        """
        if reals.shape != self.shape:
            raise DataError(f"{reals.name}: wanted examples {list(self.shape)}, got {list(reals.shape)}; reshape them")
        return replace(reals, values=self.apply(reals.values))

    def _along(self, numbers: tuple[float, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64).view(-1, *[1] * (len(self.shape) - 1))


def standardisation_of(reals: Reals) -> Standardisation:
    """The standardisation that gives each channel, or each entry of vectors, mean 0 and variance 1.

    Raises:
        DataError: one of them is constant, so that the data has no density.
    """
    by_channel = reals.values.double().movedim(1, 0).flatten(1)
    std, mean = torch.std_mean(by_channel, dim=1, correction=0)
    constant = (by_channel == by_channel[:, :1]).all(1).nonzero().flatten().tolist()
    if constant:
        what = "entry" if reals.values.ndim == 2 else "channel"
        raise DataError(f"{reals.name}: wanted values that vary, got {what} {constant[0]} constant; remove it")
    return Standardisation(reals.shape, tuple(mean.tolist()), tuple(std.tolist()))
