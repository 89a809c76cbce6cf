"""Batch normalisation as a layer of a flow, with the statistics of the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass, layouts
from torch import Tensor


@every_implementation
@every_pass
@layouts
@pytest.mark.parametrize("shape", [(8, 4, 8, 8), (64, 12, 32, 16), (64, 48, 8, 8)], ids=str)
def test_batch_norm(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    log_det = torch.zeros(shape[0], device=device)

    def make(functions: Any) -> Callable[..., tuple[Tensor, Tensor]]:
        return lambda *args: functions.batch_norm(*args)[:2]

    race(implementation, passes, "batch_norm", make, [x, log_det], saved=1)
