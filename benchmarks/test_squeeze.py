"""Space-to-depth and back, in both orders and memory layouts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass


@every_implementation
@every_pass
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(8, 4, 8, 8), (64, 12, 64, 64)], ids=str)
@pytest.mark.parametrize("order", ["plain", "factor"])
@pytest.mark.parametrize("op", ["squeeze", "squeeze_inverse"])
def test_squeeze(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    op: str,
    order: str,
    shape: tuple[int, ...],
    layout: str,
    device: str,
) -> None:
    x = torch.randn(shape, device=device)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)

    def make(functions: Any) -> Callable[..., Any]:
        return lambda x: getattr(functions, op)(x, order)

    race(implementation, passes, op, make, [x], saved=0)
