"""The masking ops under both masks and in both memory layouts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass
from torch import Tensor

from pnf import reference


@every_implementation
@every_pass
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (8, 4, 8, 8), (64, 12, 64, 64)], ids=str)
@pytest.mark.parametrize("mask", ["checkerboard", "channel"])
@pytest.mark.parametrize("op", ["mask_apply", "mask_pack", "mask_unpack", "mask_input"])
def test_masking(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    op: str,
    mask: str,
    shape: tuple[int, ...],
    layout: str,
    device: str,
) -> None:
    def lay_out(x: Tensor) -> Tensor:
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else x

    x = lay_out(torch.randn(shape, device=device))
    arguments = [x]
    if op == "mask_unpack":
        arguments = [lay_out(half) for half in reference.mask_pack(x, mask, 0)]
    elif op == "mask_input":
        arguments = [x, lay_out(torch.randn(shape, device=device))]
    size = [shape[2:]] if op == "mask_unpack" else []

    def make(functions: Any) -> Callable[..., Any]:
        return lambda *tensors: getattr(functions, op)(*tensors, mask, 0, *size)

    race(implementation, passes, op, make, arguments, saved=0)
