"""Log-density of the standard normal: a program for each block of a row.

``length`` entries are read once and one is written, so the floor is the bytes of z over the memory's bandwidth.
"""

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import add_parts, wide
from pnf.kernels._launch import cached_launch

BLOCK = 4096
WARPS = 8


@cached_launch
@triton.jit
def _forward(
    out,  # [rows, blocks]
    z,  # [rows, length]
    length,
    blocks,
    BLOCK: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    first = i_block.to(tl.int64) * BLOCK
    o_z = tl.arange(0, BLOCK)
    m_z = o_z < length - first
    b_z = wide(tl.load(z + i_row.to(tl.int64) * length + first + o_z, mask=m_z, other=0.0))
    b_log_density = tl.where(m_z, -0.5 * b_z * b_z - 0.9189385332046727, 0.0)  # log(2 pi) / 2
    tl.store(out + tl.program_id(0), tl.sum(b_log_density, 0))


@cached_launch
@triton.jit
def _backward(
    grad_z,  # [rows, length]
    grad,  # [rows]
    z,  # [rows, length]
    length,
    blocks,
    BLOCK: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    first = i_block.to(tl.int64) * BLOCK
    o_z = tl.arange(0, BLOCK)
    m_z = o_z < length - first
    at = i_row.to(tl.int64) * length + first
    b_z = wide(tl.load(z + at + o_z, mask=m_z, other=0.0))
    tl.store(grad_z + at + o_z, -tl.load(grad + i_row) * b_z, mask=m_z)


def standard_normal(
    out: Tensor,  # [rows]
    z: Tensor,  # [rows, length]
    rows: int,
    length: int,
) -> None:
    """``out = sum(-z**2 / 2 - log(2 pi) / 2)`` over each row."""
    blocks = max(triton.cdiv(length, BLOCK), 1)
    if rows == 0:
        return
    parts = out if blocks == 1 else out.new_empty(rows, blocks)
    _forward[(rows * blocks,)](parts, z, length, blocks, BLOCK, num_warps=WARPS)
    if blocks > 1:
        add_parts(out, parts)


def standard_normal_backward(
    grad_z: Tensor,  # [rows, length]
    grad: Tensor,  # [rows]
    z: Tensor,  # [rows, length]
    rows: int,
    length: int,
) -> None:
    """``grad_z = -grad z``."""
    blocks = triton.cdiv(length, BLOCK)
    if rows and blocks:
        _backward[(rows * blocks,)](grad_z, grad, z, length, blocks, BLOCK, num_warps=WARPS)
