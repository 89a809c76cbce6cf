"""Batches as a function of the step: nothing to save, and a resumed run goes on from the very batch."""

import numpy as np
import torch
from torch import Tensor

from pnf.data import dequantize

_SHUFFLE, _NOISE, _FLIP, _HOLD_OUT, VALIDATION_NOISE, TEST_NOISE = range(6)


def seeded(*key: int) -> torch.Generator:
    """A CPU generator whose stream belongs to the key, far from those of other keys."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def hold_out(pixels: Tensor, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation images, ``[N - validation, ...]`` and ``[validation, ...]``, split by the seed."""
    order = torch.randperm(len(pixels), generator=seeded(seed, _HOLD_OUT))
    cut = len(pixels) - validation
    return pixels[order[:cut]], pixels[order[cut:]]


class Batches:
    """Dequantized batches ``[batch_size, C, H, W]`` of shuffled images, each epoch in a new order.

    Args:
        pixels: ``[N, C, H, W]`` uint8.
        batch_size: images in a batch; it may be larger than N.
        seed: of the order, the noise and the flips.
        flip: mirror each image with probability 1/2.
    """

    def __init__(self, pixels: Tensor, batch_size: int, seed: int, *, flip: bool) -> None:
        self.pixels, self.batch_size, self.seed, self.flip = pixels, batch_size, seed, flip
        self._orders: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        """The batch of a step, from 0: the same for the same step, whatever came before."""
        start, n = step * self.batch_size, len(self.pixels)
        indices = torch.arange(start, start + self.batch_size)
        epochs = range(start // n, (start + self.batch_size - 1) // n + 1)
        self._orders = {epoch: self._order(epoch) for epoch in epochs}
        indices = torch.cat([self._orders[epoch][indices[indices // n == epoch] % n] for epoch in epochs])
        x = self.pixels[indices]
        if self.flip:
            mirrored = torch.rand(len(x), generator=seeded(self.seed, _FLIP, step)) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
        return dequantize(x, seeded(self.seed, _NOISE, step))

    def _order(self, epoch: int) -> Tensor:
        if epoch in self._orders:
            return self._orders[epoch]
        return torch.randperm(len(self.pixels), generator=seeded(self.seed, _SHUFFLE, epoch))
