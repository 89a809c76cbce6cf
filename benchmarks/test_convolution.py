"""The 3x3 convolutions of the conditioner networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass, layouts


@every_implementation
@every_pass
@layouts
@pytest.mark.parametrize("shape", [(16, 64, 4, 4), (16, 64, 32, 32), (16, 128, 8, 8), (128, 32, 16, 16)], ids=str)
def test_convolution(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    weight = torch.randn(shape[1], shape[1], 3, 3, device=device) / shape[1] ** 0.5
    bias = torch.randn(shape[1], device=device)

    def make(functions: Any) -> Callable[..., Any]:
        return lambda *args: functions.convolution(*args)

    race(implementation, passes, "convolution", make, [x, weight, bias], saved=1)
