"""The logit of pixels and its inverse: a program for each block of a row.

A forward pass reads an entry and writes one; a backward pass reads two and writes one: the floor is 2 or 3 times the
bytes of x over the memory's bandwidth.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import add_parts, divide, exp, log, tanh, wide
from pnf.kernels._launch import cached_launch

BLOCK = 2048
WARPS = 4


@triton.jit
def _ends(b_x, ALPHA: tl.constexpr, SLOPE: tl.constexpr):
    """``p = ALPHA + SLOPE x`` and the same of 1 - x, before they are clamped."""
    return ALPHA + SLOPE * b_x, ALPHA + SLOPE * (1 - b_x)


@triton.jit
def _at_least(b_x):
    """Clamped to the boundary of the reference, NaN left alone."""
    return tl.where(b_x < 5.9604644775390625e-08, 5.9604644775390625e-08, b_x)


@triton.jit
def _ratio(b_p, b_q):
    """``exp(-|y|)``, with an end that is infinite too."""
    return divide(tl.where(b_p < b_q, b_p, b_q), tl.where(b_p < b_q, b_q, b_p))


@cached_launch
@triton.jit
def _forward(
    out,  # [rows, length]
    log_det,  # [rows, blocks]
    x,  # [rows, length]
    length,
    blocks,
    ALPHA: tl.constexpr,  # an argument at run time would be rounded to float32
    SLOPE: tl.constexpr,
    CONSTANT: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    first = i_block.to(tl.int64) * BLOCK
    o_x = tl.arange(0, BLOCK)
    m_x = o_x < length - first
    at = i_row.to(tl.int64) * length + first
    b_x = wide(tl.load(x + at + o_x, mask=m_x, other=0.0))
    if INVERSE:
        b_magnitude = tl.abs(b_x)
        b_ratio = exp(-b_magnitude)
        b_sigmoid = divide(tl.where(b_x < 0, b_ratio, 1.0), 1 + b_ratio)
        b_out = divide(b_sigmoid - ALPHA, tl.full([1], SLOPE, b_sigmoid.dtype))
    else:
        b_p, b_q = _ends(b_x, ALPHA, SLOPE)
        b_p, b_q = _at_least(b_p), _at_least(b_q)
        b_out = log(b_p) - log(b_q)
        b_magnitude = tl.abs(b_out)
        b_ratio = _ratio(b_p, b_q)
    # Without log(4) a term is small where y is, so that it is not rounded the same way in every entry of the sum.
    b_log_det = tl.where(m_x, b_magnitude + 2 * log((1 + b_ratio) * 0.5), 0.0)
    total = tl.sum(b_log_det, 0) + tl.minimum(length - first, BLOCK).to(tl.float64) * CONSTANT
    tl.store(out + at + o_x, b_out, mask=m_x)
    tl.store(log_det + tl.program_id(0), -total if INVERSE else total)


@cached_launch
@triton.jit
def _backward(
    grad_in,  # [rows, length]
    grad_out,  # [rows, length]
    grad_log_det,  # [rows]
    x,  # [rows, length]
    length,
    blocks,
    ALPHA: tl.constexpr,
    SLOPE: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    first = i_block.to(tl.int64) * BLOCK
    o_x = tl.arange(0, BLOCK)
    m_x = o_x < length - first
    at = i_row.to(tl.int64) * length + first
    b_x = wide(tl.load(x + at + o_x, mask=m_x, other=0.0))
    b_grad = wide(tl.load(grad_out + at + o_x, mask=m_x, other=0.0))
    grad = tl.load(grad_log_det + i_row)
    if INVERSE:
        # sigmoid(y) sigmoid(-y) is a fourth of the slope of tanh at y / 2.
        b_tanh, b_slope = tanh(b_x * 0.5)
        b_out = b_grad * (b_slope * (0.25 / SLOPE)) - grad * b_tanh
    else:
        b_free_p, b_free_q = _ends(b_x, ALPHA, SLOPE)
        b_p, b_q = _at_least(b_free_p), _at_least(b_free_q)
        # 1 / p + 1 / q, whose product overflows nowhere: where one is large, the other is clamped.
        b_sum = tl.where(b_free_p == b_p, b_q, 0.0) + tl.where(b_free_q == b_q, b_p, 0.0)
        b_inverse = divide(b_sum, b_p * b_q)
        b_ratio = _ratio(b_p, b_q)
        b_tanh = divide(1 - b_ratio, 1 + b_ratio)
        b_out = (b_grad + grad * tl.where(b_p < b_q, -b_tanh, b_tanh)) * (SLOPE * b_inverse)
    tl.store(grad_in + at + o_x, b_out, mask=m_x)


def logit(
    out: Tensor,  # [rows, length]
    log_det: Tensor,  # [rows]
    x: Tensor,  # [rows, length]
    rows: int,
    length: int,
    alpha: float,
    inverse: bool,
) -> None:
    """``out = log p - log q`` of ``p = alpha + (1 - 2 alpha) x`` and ``q = 1 - p``, and each row's log-determinant.

    The inverse is ``out = (sigmoid(x) - alpha) / (1 - 2 alpha)``.
    """
    if rows == 0:
        return
    blocks = max(triton.cdiv(length, BLOCK), 1)
    parts = log_det if blocks == 1 else log_det.new_empty(rows, blocks)
    slope = 1 - 2 * alpha
    _forward[(rows * blocks,)](
        out, parts, x, length, blocks, alpha, slope, math.log(4 * slope), inverse, BLOCK, num_warps=WARPS
    )
    if blocks > 1:
        add_parts(log_det, parts)


def logit_backward(
    grad_in: Tensor,  # [rows, length]
    grad_out: Tensor,  # [rows, length]
    grad_log_det: Tensor,  # [rows]
    x: Tensor,  # [rows, length]
    rows: int,
    length: int,
    alpha: float,
    inverse: bool,
) -> None:
    """``grad_in = (grad_out + grad_log_det tanh(y / 2)) (1 - 2 alpha) (1 / p + 1 / q)``, what is clamped adding 0.

    That of the inverse is ``grad_in = grad_out sigmoid(x) sigmoid(-x) / (1 - 2 alpha) - grad_log_det tanh(x / 2)``.
    """
    blocks = triton.cdiv(length, BLOCK)
    if rows and blocks:
        _backward[(rows * blocks,)](
            grad_in, grad_out, grad_log_det, x, length, blocks, alpha, 1 - 2 * alpha, inverse, BLOCK, num_warps=WARPS
        )
