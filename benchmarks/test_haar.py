"""The Haar ops: splits and merges along each axis, pyramids and their inverses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass, layouts

from pnf import reference

SHAPES = [(8, 4, 8, 8), (16, 3, 256, 256)]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_implementation
@every_pass
@layouts
@shapes
@pytest.mark.parametrize("dim", [-1, -2])
def test_haar_split(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    dim: int,
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    race(implementation, passes, f"haar_split {dim}", lambda functions: lambda x: functions.haar_split(x, dim), [x], 0)


@every_implementation
@every_pass
@layouts
@shapes
@pytest.mark.parametrize("dim", [-1, -2])
def test_haar_merge(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    dim: int,
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    halves = [part.contiguous(memory_format=layout) for part in reference.haar_split(x, dim)]
    race(
        implementation,
        passes,
        f"haar_merge {dim}",
        lambda functions: lambda s, d: functions.haar_merge(s, d, dim),
        halves,
        0,
    )


@every_implementation
@every_pass
@layouts
@shapes
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_haar_pyramid(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    levels: int,
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)

    def make(functions: Any) -> Callable[..., Any]:
        def pyramid(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            base, details = functions.haar_pyramid(x, levels)
            return base, *details

        return pyramid

    race(implementation, passes, f"haar_pyramid {levels}", make, [x], 0)


@every_implementation
@every_pass
@layouts
@shapes
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_haar_pyramid_inverse(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    layout: torch.memory_format,
    shape: tuple[int, ...],
    levels: int,
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    base, details = reference.haar_pyramid(x, levels)
    parts = [part.contiguous(memory_format=layout) for part in (base, *details)]

    def make(functions: Any) -> Callable[..., Any]:
        return lambda base, *details: functions.haar_pyramid_inverse(base, details)

    race(implementation, passes, f"haar_pyramid_inverse {levels}", make, parts, 0)
