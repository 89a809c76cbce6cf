"""The log-density of the standard normal."""

from collections.abc import Callable

import pytest
import torch
from racing import every_implementation, every_pass


@every_implementation
@every_pass
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 4, 8, 8), (64, 12, 64, 64)], ids=str)
def test_standard_normal(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
) -> None:
    z = torch.randn(shape, device=device, dtype=dtype)
    race(implementation, passes, "standard_normal", lambda functions: functions.standard_normal, [z], saved=1)
