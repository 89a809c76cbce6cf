"""What the kernels share."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def wide(b_x):
    """At least float32, in which everything is computed."""
    if b_x.dtype == tl.float64:
        return b_x
    else:  # without it the compiler sees two returns of different types
        return b_x.to(tl.float32)


def add_parts(
    out: Tensor,  # [rows]
    parts: Tensor,  # [rows, n]
) -> None:
    """``out = sum(parts)``: the end of a sum over rows that more than one program shares."""
    torch.sum(parts, 1, out=out)
