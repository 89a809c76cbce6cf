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
        return ((x.double() - self._along(self.mean, x)) / self._along(self.std, x)).to(x.dtype)

    def invert(
        self,
        y: Tensor,  # [N, *shape]
    ) -> Tensor:
        """``mean + std y``, computed in float64."""
        return (self._along(self.mean, y) + y.double() * self._along(self.std, y)).to(y.dtype)

    @property
    def log_det(self) -> float:
        """``-sum log std`` over all dimensions: the log-determinant of x -> y, in nats."""
        return -math.prod(self.shape[1:]) * sum(map(math.log, self.std))

    def of(self, reals: Reals) -> Reals:
        """Standardise examples, to float32.

        Raises:
            DataError: they have another shape, or are too far from the mean for float32.
        """
        if reals.shape != self.shape:
            raise DataError(f"{reals.name}: wanted examples {list(self.shape)}, got {list(reals.shape)}; reshape them")
        values = self.apply(reals.values).float()
        if not values.isfinite().all():
            raise DataError(f"{reals.name}: wanted numbers like those in training, got some far beyond; remove them")
        return replace(reals, values=values)

    def _along(self, numbers: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=like.device).view(-1, *[1] * (len(self.shape) - 1))


def standardisation_of(reals: Reals) -> Standardisation:
    """The standardisation that gives each channel, or each entry of vectors, mean 0 and variance 1.

    Raises:
        DataError: one of them is constant or holds integers only, so that the data has no density, or they vary too
            much or too little for float64.
    """
    by_channel = reals.values.double().movedim(1, 0).flatten(1)
    std, mean = torch.std_mean(by_channel, dim=1, correction=0)
    # Above that bound numbers have little room for fractions, and need be no integers.
    bound = 0.25 / torch.finfo(reals.values.dtype).eps
    whole = ((by_channel == by_channel.round()) & (by_channel.abs() < bound)).all(1)
    constant = (by_channel == by_channel[:, :1]).all(1)
    for wrong, wanted, got, remedy in (
        (constant, "values that vary", "constant", "remove it"),
        (whole, "values with fractions", "of integers only, which have no density", "add noise from [0, 1) to it"),
        ((std <= 0) | ~std.isfinite(), "values of about 1", "beyond the range of float64", "change its unit"),
    ):
        if wrong.any():
            what = f"{'entry' if reals.values.ndim == 2 else 'channel'} {int(wrong.nonzero()[0])}"
            raise DataError(f"{reals.name}: wanted {wanted}, got {what} {got}; {remedy}")
    return Standardisation(reals.shape, tuple(mean.tolist()), tuple(std.tolist()))
