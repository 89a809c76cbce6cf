"""Batches as a function of the step, so that a resumed run continues with the same batches without saved state."""

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pnf.data.images import Examples

E = TypeVar("E", bound=Examples)

_SHUFFLE, _NOISE, _FLIP, _HOLD_OUT, VALIDATION_NOISE, TEST_NOISE = range(6)


def seeded(*key: int) -> torch.Generator:
    """A CPU generator seeded by a key. Different keys give independent streams."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def hold_out(images: E, validation: int, seed: int) -> tuple[E, E]:
    """Split N examples at random into ``N - validation`` for training and ``validation`` to hold out."""
    order = torch.randperm(len(images), generator=seeded(seed, _HOLD_OUT))
    cut = len(images) - validation
    return images.take(order[:cut]), images.take(order[cut:])


class Batch(NamedTuple):
    """Examples ``[B, *shape]`` as flows model them, and their labels ``[B]`` if the data has them."""

    x: Tensor
    condition: Tensor | None = None

    def split(self, size: int) -> "list[Batch]":
        """Consecutive parts of at most ``size`` examples."""
        parts = self.x.split(size)
        conditions = [None] * len(parts) if self.condition is None else self.condition.split(size)
        return [Batch(*part) for part in zip(parts, conditions, strict=True)]


class Batches:
    """Batches of ``batch_size`` shuffled images, or other examples, each epoch in a new order.

    Args:
        images: N images, with their labels if batches are to have them.
        batch_size: the number of images in a batch. It may be larger than N.
        seed: the seed of the order, the noise and the flips.
        flip: whether to mirror each image with probability 1/2.
    """

    def __init__(self, images: Examples, batch_size: int, seed: int, *, flip: bool) -> None:
        self.images, self.batch_size, self.seed, self.flip = images, batch_size, seed, flip
        self._orders: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from 0. It only depends on the step."""
        start, n = step * self.batch_size, len(self.images)
        indices = torch.arange(start, start + self.batch_size)
        epochs = range(start // n, (start + self.batch_size - 1) // n + 1)
        self._orders = {epoch: self._order(epoch) for epoch in epochs}
        indices = torch.cat([self._orders[epoch][indices[indices // n == epoch] % n] for epoch in epochs])
        chosen = self.images.take(indices)
        if self.flip:
            mirrored = torch.rand(len(chosen), generator=seeded(self.seed, _FLIP, step)) < 0.5
            chosen = chosen.mirrored(mirrored)
        return Batch(chosen.continuous(seeded(self.seed, _NOISE, step)), chosen.labels)

    def _order(self, epoch: int) -> Tensor:
        if epoch in self._orders:
            return self._orders[epoch]
        return torch.randperm(len(self.images), generator=seeded(self.seed, _SHUFFLE, epoch))
