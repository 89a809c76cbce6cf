"""What the kernels share."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def wide(b_x):
    """At least float32, in which everything is computed."""
    return b_x.to(tl.float64 if b_x.dtype == tl.float64 else tl.float32)


def add_parts(
    out: Tensor,  # [rows]
    parts: Tensor,  # [rows, n]
) -> None:
    """``out = sum(parts)``: the end of a sum over rows that more than one program shares."""
    torch.sum(parts, 1, out=out)
