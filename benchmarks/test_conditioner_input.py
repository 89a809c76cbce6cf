"""The input stage of a conditioner network, with the statistics of the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass, layouts
from torch import Tensor


@every_implementation
@every_pass
@pytest.mark.parametrize("mask", ["checkerboard", "channel"])
@layouts
@pytest.mark.parametrize("shape", [(16, 12, 32, 32)], ids=str)
def test_conditioner_input(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    mask: str,
    device: str,
) -> None:
    x, condition = (torch.randn(shape, device=device).contiguous(memory_format=layout) for _ in range(2))
    offset = torch.randn(shape[1] // 2 if mask == "channel" else shape[1], device=device)

    def make(functions: Any) -> Callable[..., Tensor]:
        return lambda *args: functions.conditioner_input(*args, mask=mask, parity=0, gain=2.0)[0]

    # The backward reads the kept half of x, but not the condition.
    kept = 1 / 2 if mask == "channel" else 1
    saved = (kept * x.numel() + offset.numel()) / (x.numel() + condition.numel() + offset.numel())
    race(implementation, passes, "conditioner_input", make, [x, condition, offset], saved)
