"""Batch normalisation with ReLU, with the statistics of the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass, layouts
from torch import Tensor


@every_implementation
@every_pass
@layouts
@pytest.mark.parametrize("shape", [(8, 4, 8, 8), (16, 64, 32, 32), (64, 32, 16, 16)], ids=str)
def test_batch_norm_relu(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    weight, bias = torch.randn(2, shape[1], device=device)

    def make(functions: Any) -> Callable[..., Tensor]:
        return lambda *args: functions.batch_norm_relu(*args)[0]

    race(implementation, passes, "batch_norm_relu", make, [x, weight, bias], saved=1)
