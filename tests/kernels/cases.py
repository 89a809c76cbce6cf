"""The calls by which every Triton implementation of an op is compiled and traced; none of them needs any data."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = Sequence[int]

ORDINARY = (16, 12, 32, 32)

# More than 2^31 entries, as many examples and as one example.
HUGE = [(2**31 // (12 * 32 * 32) + 3, 12, 32, 32), (1, 12, 2**14, 2**14 + 2)]


class Meta(NamedTuple):
    """Makes tensors without memory.

    Attributes:
        dtype: of the main tensors.
        channels_last: their layout in memory.
    """

    dtype: torch.dtype
    channels_last: bool

    def __call__(self, *shape: int) -> Tensor:
        if self.channels_last and len(shape) > 2:
            return torch.empty(shape[0], *shape[2:], shape[1], dtype=self.dtype, device="meta").movedim(-1, 1)
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def wide(self, *shape: int) -> Tensor:
        """A parameter, a log-determinant or its gradient."""
        return torch.empty(shape, dtype=torch.float32, device="meta")


class Case(NamedTuple):
    """Arguments of an op.

    Attributes:
        op: its name in ``torch.ops.pnf``.
        arguments: makes them from a shape ``[B, C, H, W]``.
        mode: what sets the case apart from the others of the op.
        channels_last: whether the op's kernels see that layout.
        moved: bytes that its kernels move over the least, its arguments and its results once each; more than 1 where
            something must be read twice.
        narrow: the kernels' tensors that they cannot access in 128 bits at a time, and why.
    """

    op: str
    arguments: Callable[[Meta, Shape], Sequence[Any]]
    mode: str = ""
    channels_last: bool = True
    moved: float = 1.0
    narrow: dict[str, str] = {}


def rows(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


CASES = [
    Case("standard_normal", lambda x, s: [x(*rows(s))], channels_last=False),
    Case("standard_normal_backward", lambda x, s: [x.wide(s[0]), x(*rows(s))], channels_last=False),
]
