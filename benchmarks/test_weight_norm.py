"""Weight normalisation of a whole network: 64 wide, 8 residual blocks."""

from collections.abc import Callable
from typing import Any

import torch
from racing import every_implementation, every_pass
from torch import Tensor

NETWORK = [(64, 9, 3, 3), *[(64, 64, 3, 3)] * 16, *[(64, 64, 1, 1)] * 9, (12, 64, 1, 1)]


@every_implementation
@every_pass
def test_weight_norm(race: Callable[..., None], implementation: str, passes: str, device: str) -> None:
    directions = [torch.randn(shape, device=device) for shape in NETWORK]
    magnitudes = [torch.rand(shape[0], 1, 1, 1, device=device) for shape in NETWORK]

    def make(functions: Any) -> Callable[..., list[Tensor]]:
        return lambda *tensors: functions.weight_norm(tensors[: len(NETWORK)], tensors[len(NETWORK) :])

    race(implementation, passes, "weight_norm", make, [*directions, *magnitudes], saved=1)
