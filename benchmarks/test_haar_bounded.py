"""The bounded-detail map and its inverse along the last axis and the height."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass
from torch import Tensor

from pnf import reference

shapes = pytest.mark.parametrize("shape", [(8, 4, 8, 8), (64, 1, 32, 32), (16, 3, 256, 256)], ids=str)


def pixels(shape: tuple[int, ...], device: str) -> Tensor:
    """Pixels that are not nearly black or white, where gradients are differences of large terms."""
    return 0.02 + 0.96 * torch.rand(shape, device=device)


@every_implementation
@every_pass
@shapes
@pytest.mark.parametrize("dim", [-1, -2])
def test_haar_bounded_split(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    shape: tuple[int, ...],
    dim: int,
    device: str,
) -> None:
    x, gamma = pixels(shape, device), torch.rand(shape[1], device=device)

    def make(functions: Any) -> Callable[..., Any]:
        return lambda *args: functions.haar_bounded_split(*args, dim)

    race(implementation, passes, f"haar_bounded_split {dim}", make, [x, gamma], saved=1)


@every_implementation
@every_pass
@shapes
@pytest.mark.parametrize("dim", [-1, -2])
def test_haar_bounded_merge(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    shape: tuple[int, ...],
    dim: int,
    device: str,
) -> None:
    gamma = torch.rand(shape[1], device=device)
    s, u, _ = reference.haar_bounded_split(pixels(shape, device), gamma, dim)

    def make(functions: Any) -> Callable[..., Any]:
        return lambda *args: functions.haar_bounded_merge(*args, dim)

    race(implementation, passes, f"haar_bounded_merge {dim}", make, [s, u, gamma], saved=1)
