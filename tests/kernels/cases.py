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


def coupling(op: str, mask: str | None) -> Case:
    def arguments(x: Meta, s: Shape) -> Sequence[Any]:
        transformed = s[1] // 2 if mask == "channel" else s[1]
        grads = [x(*s), x.wide(s[0])] if op.endswith("backward") else []
        tensors = [x(*s), x(s[0], 2 * transformed, *s[2:]), x.wide(transformed)]
        return [*grads, *tensors, *([] if grads else [x.wide(s[0])]), mask, 0]

    few = "one entry for each example"
    return Case(op, arguments, mode=mask or "", narrow={"out": few, "parts": few, "log_det": few})


CASES = [
    Case("standard_normal", lambda x, s: [x(*rows(s))], channels_last=False),
    Case("standard_normal_backward", lambda x, s: [x.wide(s[0]), x(*rows(s))], channels_last=False),
    Case("logit", lambda x, s: [x(*rows(s)), 0.05], channels_last=False),
    Case("logit_backward", lambda x, s: [x(*rows(s)), x.wide(s[0]), x(*rows(s)), 0.05], channels_last=False),
    Case("logit_inverse", lambda x, s: [x(*rows(s)), 0.05], channels_last=False),
    Case("logit_inverse_backward", lambda x, s: [x(*rows(s)), x.wide(s[0]), x(*rows(s)), 0.05], channels_last=False),
    *(Case("squeeze", lambda x, s, order=order: [x(*s), order], order) for order in ("plain", "factor")),
    *(
        Case("squeeze_inverse", lambda x, s, order=order: [x(s[0], 4 * s[1], s[2] // 2, s[3] // 2), order], order)
        for order in ("plain", "factor")
    ),
    *(coupling("affine_coupling", mask) for mask in (None, "checkerboard", "channel")),
    *(coupling("affine_coupling_backward", mask) for mask in (None, "checkerboard", "channel")),
    coupling("affine_coupling_inverse", "checkerboard"),
    coupling("affine_coupling_inverse_backward", "checkerboard"),
]
