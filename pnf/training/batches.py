"""Batches as a function of the step, so that a resumed run continues with the same batches without saved state."""

import numpy as np
import torch
from torch import Tensor

from pnf.data import dequantize

_SHUFFLE, _NOISE, _FLIP, _HOLD_OUT, VALIDATION_NOISE, TEST_NOISE = range(6)


def seeded(*key: int) -> torch.Generator:
    """A CPU generator seeded by a key. Different keys give independent streams."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def hold_out(pixels: Tensor, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split images at random into training ``[N - validation, ...]`` and validation ``[validation, ...]``."""
    order = torch.randperm(len(pixels), generator=seeded(seed, _HOLD_OUT))
    cut = len(pixels) - validation
    return pixels[order[:cut]], pixels[order[cut:]]


class Batches:
    """Dequantized batches ``[batch_size, C, H, W]`` of shuffled images, each epoch in a new order.

    Args:
        pixels: ``[N, C, H, W]`` uint8.
        batch_size: the number of images in a batch. It may be larger than N.
        seed: the seed of the order, the noise and the flips.
        flip: whether to mirror each image with probability 1/2.
    """

    def __init__(self, pixels: Tensor, batch_size: int, seed: int, *, flip: bool) -> None:
        self.pixels, self.batch_size, self.seed, self.flip = pixels, batch_size, seed, flip
        self._orders: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        """The batch of a step, counted from 0. It only depends on the step."""
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
