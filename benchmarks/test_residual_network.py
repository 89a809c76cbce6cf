"""A whole conditioner network in evaluation: 64 wide, 4 blocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation
from torch import Tensor

HIDDEN, BLOCKS, OUTPUTS = 64, 4, 12


@every_implementation
@pytest.mark.parametrize("shape", [(1, HIDDEN, 8, 8), (1, HIDDEN, 32, 32), (16, HIDDEN, 16, 16)], ids=str)
def test_residual_network(race: Callable[..., None], implementation: str, shape: tuple[int, ...], device: str) -> None:
    sizes = [1, *[3, 3, 1] * BLOCKS, 1]
    outputs = [*[HIDDEN] * (len(sizes) - 1), OUTPUTS]
    directions = [torch.randn(o, HIDDEN, size, size, device=device) for o, size in zip(outputs, sizes, strict=True)]
    magnitudes = [torch.rand(o, 1, 1, 1, device=device) for o in outputs]
    biases = [torch.randn(o, device=device) for o in outputs]
    norms = [torch.rand(HIDDEN, device=device) + 0.5 for _ in range(4 * (2 * BLOCKS + 1))]
    h = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    count = len(sizes)

    def make(functions: Any) -> Callable[..., Tensor]:
        def run(h: Tensor, *tensors: Tensor) -> Tensor:
            filters = [tensors[i * count : (i + 1) * count] for i in range(3)]
            return functions.residual_network(h, *filters, tensors[3 * count :])

        return run

    race(implementation, "forward", "residual_network", make, [h, *directions, *magnitudes, *biases, *norms], saved=0)
