"""The logit of pixels and its inverse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass


@every_implementation
@every_pass
@pytest.mark.parametrize("shape", [(8, 4, 8, 8), (64, 12, 64, 64)], ids=str)
@pytest.mark.parametrize("op", ["logit", "logit_inverse"])
def test_logit(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    op: str,
    shape: tuple[int, ...],
    device: str,
) -> None:
    x = torch.rand(shape, device=device)

    def make(functions: Any) -> Callable[..., Any]:
        return lambda x: getattr(functions, op)(x, 0.05)

    race(implementation, passes, op, make, [x], saved=1)
