"""The lattice of 8-bit images: splits and merges along the last axis and the height."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass, layouts
from torch import Tensor

from pnf import reference

LEVELS = 256

shapes = pytest.mark.parametrize("shape", [(128, 1, 32, 32), (32, 3, 64, 64), (16, 3, 256, 256)], ids=str)


def pixels(shape: tuple[int, ...], device: str) -> Tensor:
    """Pixels with noise that no rounding error takes to another level."""
    return (torch.randint(LEVELS, shape, device=device) + 0.1 + 0.8 * torch.rand(shape, device=device)) / LEVELS


@every_implementation
@every_pass
@layouts
@shapes
@pytest.mark.parametrize("dim", [-1, -2])
def test_lattice_split(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    dim: int,
    device: str,
) -> None:
    x = pixels(shape, device).contiguous(memory_format=layout)

    def make(functions: Any) -> Callable[..., Any]:
        return lambda x: functions.lattice_split(x, LEVELS, dim)

    race(implementation, passes, f"lattice_split {dim}", make, [x], 1)


@every_implementation
@every_pass
@layouts
@shapes
@pytest.mark.parametrize("dim", [-1, -2])
def test_lattice_merge(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    dim: int,
    device: str,
) -> None:
    x = pixels(shape, device)
    parts = [part.contiguous(memory_format=layout) for part in reference.lattice_split(x, LEVELS, dim)]

    def make(functions: Any) -> Callable[..., Any]:
        return lambda coarser, pairs: functions.lattice_merge(coarser, pairs, LEVELS, dim)

    race(implementation, passes, f"lattice_merge {dim}", make, parts, 1)
