"""The bounded-detail map: a program for each block of the pairs of a row, which is a channel of an example.

Where the channels come last in memory a row is a whole example, and a block has two dims. Every pair of pixels and its
s and u are read or written once, so the floor is twice the bytes of x over the memory's bandwidth, and three times
backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import add_parts, divide, exp, log, wide
from pnf.kernels._launch import cached_launch

BLOCK = 1024
CHANNELS = 64
WARPS = 4

# As in pnf/reference/haar_bounded.py.
BOUNDARY = tl.constexpr(2.0**-24)
LARGEST_EXPONENT = tl.constexpr(64.0)
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _places(i_row, i_block, length, stride, step, BLOCK: tl.constexpr, BC: tl.constexpr, LAST: tl.constexpr):
    """The pairs of a block: how many, where they start in s and in x, offsets from there, a mask, and the channels.

    Starts have 64 bits, offsets 32.
    """
    o_c = tl.arange(0, BC)
    if LAST:
        turns = tl.cdiv(step, BC)
        o_c += i_block % turns * BC
        i_block //= turns
    first = i_block.to(tl.int64) * BLOCK
    before = first // stride
    start = (first - before * stride).to(tl.int32)
    pairs = tl.minimum(length - first, BLOCK).to(tl.int32)
    o_s = tl.arange(0, BLOCK)
    o_x = o_s + (start + o_s) // stride * stride
    m_s = o_s < pairs
    row = i_row.to(tl.int64) * length
    start_s, start_x = row + first, 2 * (row + before * stride) + start
    if LAST:
        start_s, start_x = start_s * step, start_x * step
        o_s, o_x = (o_s * step)[:, None] + o_c[None, :], (o_x * step)[:, None] + o_c[None, :]
        m_s = m_s[:, None] & (o_c < step)[None, :]
    return pairs, start_s, start_x, o_s, o_x, m_s, o_c


@triton.jit
def _gamma(gamma, i_row, channels, o_c, LAST: tl.constexpr):
    if LAST:
        b_gamma = tl.load(gamma + o_c, mask=o_c < channels, other=0.0)[None, :]
    else:
        b_gamma = tl.load(gamma + i_row % channels)
    return b_gamma


@triton.jit
def _load_pixels(x, o_x, m_s, pairs, stride, BLOCK: tl.constexpr, ADJACENT: tl.constexpr):
    if ADJACENT:
        o_both = tl.arange(0, 2 * BLOCK)
        b_x = tl.load(x + o_both, mask=o_both < 2 * pairs, other=0.0)
        b_x0, b_x1 = tl.split(tl.reshape(b_x, (BLOCK, 2)))
    else:
        b_x0 = tl.load(x + o_x, mask=m_s, other=0.0)
        b_x1 = tl.load(x + stride + o_x, mask=m_s, other=0.0)
    return wide(b_x0), wide(b_x1)


@triton.jit
def _store_pixels(x, b_x0, b_x1, o_x, m_s, pairs, stride, BLOCK: tl.constexpr, ADJACENT: tl.constexpr):
    if ADJACENT:
        o_both = tl.arange(0, 2 * BLOCK)
        tl.store(x + o_both, tl.reshape(tl.join(b_x0, b_x1), (2 * BLOCK,)), mask=o_both < 2 * pairs)
    else:
        tl.store(x + o_x, b_x0, mask=m_s)
        tl.store(x + stride + o_x, b_x1, mask=m_s)


# Comparisons are written so that NaN goes through.


@triton.jit
def _inside(b_x):
    return tl.where(b_x < BOUNDARY, BOUNDARY, b_x)


@triton.jit
def _bounded_exp(b_exponent):
    return exp(tl.where(b_exponent > LARGEST_EXPONENT, LARGEST_EXPONENT, b_exponent))


@triton.jit
def _ends(b_x0, b_x1):
    """The mean, whether it is low, and m, a and b before they are taken inside."""
    b_s = (b_x0 + b_x1) * 0.5
    m_low = b_s <= 0.5
    b_m = tl.where(m_low, b_s, 1.0 - b_s)
    return b_s, m_low, b_m, tl.where(m_low, b_x0, 1.0 - b_x1), tl.where(m_low, b_x1, 1.0 - b_x0)


@triton.jit
def _sigmoids(b_v):
    """``exp(-|v|)``, ``1 / (1 + exp(-|v|))``, ``sigmoid(v)`` and ``sigmoid(-v)``."""
    b_small = exp(-tl.abs(b_v))
    b_inverse = divide(1.0, 1.0 + b_small)
    b_other = b_small * b_inverse
    m_negative = b_v < 0.0
    return b_small, b_inverse, tl.where(m_negative, b_other, b_inverse), tl.where(m_negative, b_inverse, b_other)


@triton.jit
def _store_grad_gamma(
    parts,  # [rows, blocks], or [rows, blocks, channels]
    b_grad,
    i_row,
    i_block,
    channels,
    blocks,
    o_c,
    BC: tl.constexpr,
    LAST: tl.constexpr,
):
    if LAST:
        turns = tl.cdiv(channels, BC)
        row = (i_row * (blocks // turns) + i_block // turns).to(tl.int64) * channels
        tl.store(parts + row + o_c, tl.sum(b_grad, 0), mask=o_c < channels)
    else:
        tl.store(parts + i_row * blocks + i_block, tl.sum(b_grad, 0))


@cached_launch
@triton.jit
def _split(
    s,  # [rows, length]
    u,  # [rows, length]
    parts,  # [rows, blocks]
    x,  # [rows, 2 length]
    gamma,  # [channels]
    channels,
    length,
    stride,
    blocks,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
    ADJACENT: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    step = channels if LAST else 1
    pairs, start_s, start_x, o_s, o_x, m_s, o_c = _places(i_row, i_block, length, stride, step, BLOCK, BC, LAST)
    b_gamma = _gamma(gamma, i_row, channels, o_c, LAST)
    b_x0, b_x1 = _load_pixels(x + start_x, o_x, m_s, pairs, stride * step, BLOCK, ADJACENT)
    b_s, _, b_m, b_a, b_b = _ends(b_x0, b_x1)
    b_log_m, b_log_a, b_log_b = log(_inside(b_m)), log(_inside(b_a)), log(_inside(b_b))
    b_u = _bounded_exp(b_gamma * b_log_m) * 0.5 * (b_log_a - b_log_b)
    b_log_det = (1.0 + b_gamma) * b_log_m - b_log_a - b_log_b - LOG_2
    tl.store(s + start_s + o_s, b_s, mask=m_s)
    tl.store(u + start_s + o_s, b_u, mask=m_s)
    tl.store(parts + tl.program_id(0), tl.sum(tl.where(m_s, b_log_det, 0.0)))


@cached_launch
@triton.jit
def _split_backward(
    grad_x,  # [rows, 2 length]
    parts,  # [rows, blocks], or [rows, blocks, channels]
    grad_s,  # [rows, length]
    grad_u,  # [rows, length]
    grad_log_det,  # [examples]
    x,  # [rows, 2 length]
    gamma,  # [channels]
    channels,
    length,
    stride,
    blocks,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
    ADJACENT: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    step = channels if LAST else 1
    pairs, start_s, start_x, o_s, o_x, m_s, o_c = _places(i_row, i_block, length, stride, step, BLOCK, BC, LAST)
    b_gamma = _gamma(gamma, i_row, channels, o_c, LAST)
    b_grad = tl.load(grad_log_det + (i_row if LAST else i_row // channels))
    b_x0, b_x1 = _load_pixels(x + start_x, o_x, m_s, pairs, stride * step, BLOCK, ADJACENT)
    _, m_low, b_m, b_a, b_b = _ends(b_x0, b_x1)
    b_log_m = log(_inside(b_m))
    b_exponent = b_gamma * b_log_m
    b_u = wide(tl.load(grad_u + start_s + o_s, mask=m_s, other=0.0))
    b_half = b_u * _bounded_exp(b_exponent) * 0.5
    b_of_u = b_half * (log(_inside(b_a)) - log(_inside(b_b)))
    b_of_exponent = tl.where(b_exponent <= LARGEST_EXPONENT, b_of_u, 0.0)
    b_of_a = tl.where(b_a >= BOUNDARY, divide(b_half - b_grad, _inside(b_a)), 0.0)
    b_of_b = tl.where(b_b >= BOUNDARY, divide(-b_half - b_grad, _inside(b_b)), 0.0)
    b_of_log_m = b_of_exponent * b_gamma + b_grad * (1.0 + b_gamma)
    b_of_m = tl.where(b_m >= BOUNDARY, divide(b_of_log_m, _inside(b_m)), 0.0)
    b_s = wide(tl.load(grad_s + start_s + o_s, mask=m_s, other=0.0))
    b_of_both = (b_s + tl.where(m_low, b_of_m, -b_of_m)) * 0.5
    b_of_x0 = b_of_both + tl.where(m_low, b_of_a, -b_of_b)
    b_of_x1 = b_of_both + tl.where(m_low, b_of_b, -b_of_a)
    _store_pixels(grad_x + start_x, b_of_x0, b_of_x1, o_x, m_s, pairs, stride * step, BLOCK, ADJACENT)
    b_of_gamma = tl.where(m_s, (b_of_exponent + b_grad) * b_log_m, 0.0)
    _store_grad_gamma(parts, b_of_gamma, i_row, i_block, channels, blocks, o_c, BC, LAST)


@cached_launch
@triton.jit
def _merge(
    x,  # [rows, 2 length]
    parts,  # [rows, blocks]
    s,  # [rows, length]
    u,  # [rows, length]
    gamma,  # [channels]
    channels,
    length,
    stride,
    blocks,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
    ADJACENT: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    step = channels if LAST else 1
    pairs, start_s, start_x, o_s, o_x, m_s, o_c = _places(i_row, i_block, length, stride, step, BLOCK, BC, LAST)
    b_gamma = _gamma(gamma, i_row, channels, o_c, LAST)
    b_s = wide(tl.load(s + start_s + o_s, mask=m_s, other=0.0))
    b_u = wide(tl.load(u + start_s + o_s, mask=m_s, other=0.0))
    m_low = b_s <= 0.5
    b_m = tl.where(m_low, b_s, 1.0 - b_s)
    b_log_m = log(_inside(b_m))
    b_v = 2.0 * b_u * _bounded_exp(-b_gamma * b_log_m)
    b_small, b_inverse, b_up, b_down = _sigmoids(b_v)
    b_a, b_b = 2.0 * b_m * b_up, 2.0 * b_m * b_down
    b_x0, b_x1 = tl.where(m_low, b_a, 1.0 - b_b), tl.where(m_low, b_b, 1.0 - b_a)
    b_x0, b_x1 = tl.where(b_x0 < 0.0, 0.0, b_x0), tl.where(b_x1 < 0.0, 0.0, b_x1)
    b_x0, b_x1 = tl.where(b_x0 > 1.0, 1.0, b_x0), tl.where(b_x1 > 1.0, 1.0, b_x1)
    _store_pixels(x + start_x, b_x0, b_x1, o_x, m_s, pairs, stride * step, BLOCK, ADJACENT)
    # log(1 + small), with what the rounding of the sum lost put back.
    b_sum = 1.0 + b_small
    b_cost = tl.abs(b_v) + 2.0 * (log(b_sum) + (b_small - (b_sum - 1.0)) * b_inverse)
    b_log_det = (1.0 - b_gamma) * b_log_m + 3.0 * LOG_2 - b_cost
    tl.store(parts + tl.program_id(0), tl.sum(tl.where(m_s, b_log_det, 0.0)))


@cached_launch
@triton.jit
def _merge_backward(
    grad_s,  # [rows, length]
    grad_u,  # [rows, length]
    parts,  # [rows, blocks], or [rows, blocks, channels]
    grad_x,  # [rows, 2 length]
    grad_log_det,  # [examples]
    s,  # [rows, length]
    u,  # [rows, length]
    gamma,  # [channels]
    channels,
    length,
    stride,
    blocks,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
    ADJACENT: tl.constexpr,
):
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    step = channels if LAST else 1
    pairs, start_s, start_x, o_s, o_x, m_s, o_c = _places(i_row, i_block, length, stride, step, BLOCK, BC, LAST)
    b_gamma = _gamma(gamma, i_row, channels, o_c, LAST)
    b_grad = tl.load(grad_log_det + (i_row if LAST else i_row // channels))
    b_s = wide(tl.load(s + start_s + o_s, mask=m_s, other=0.0))
    b_u = wide(tl.load(u + start_s + o_s, mask=m_s, other=0.0))
    m_low = b_s <= 0.5
    b_m = tl.where(m_low, b_s, 1.0 - b_s)
    b_log_m = log(_inside(b_m))
    b_exponent = -b_gamma * b_log_m
    b_factor = 2.0 * _bounded_exp(b_exponent)
    _, _, b_up, b_down = _sigmoids(b_u * b_factor)
    b_a, b_b = 2.0 * b_m * b_up, 2.0 * b_m * b_down
    b_x0, b_x1 = tl.where(m_low, b_a, 1.0 - b_b), tl.where(m_low, b_b, 1.0 - b_a)
    b_of_x0, b_of_x1 = _load_pixels(grad_x + start_x, o_x, m_s, pairs, stride * step, BLOCK, ADJACENT)
    b_of_x0 = tl.where((b_x0 >= 0.0) & (b_x0 <= 1.0), b_of_x0, 0.0)
    b_of_x1 = tl.where((b_x1 >= 0.0) & (b_x1 <= 1.0), b_of_x1, 0.0)
    b_of_a, b_of_b = tl.where(m_low, b_of_x0, -b_of_x1), tl.where(m_low, b_of_x1, -b_of_x0)
    b_of_v = (b_of_a - b_of_b) * b_a * b_down - b_grad * (b_up - b_down)
    b_of_u = b_of_v * b_factor
    b_of_exponent = tl.where(b_exponent <= LARGEST_EXPONENT, b_of_u * b_u, 0.0)
    b_of_log_m = b_grad * (1.0 - b_gamma) - b_of_exponent * b_gamma
    b_of_m = 2.0 * (b_of_a * b_up + b_of_b * b_down)
    b_of_m += tl.where(b_m >= BOUNDARY, divide(b_of_log_m, _inside(b_m)), 0.0)
    tl.store(grad_s + start_s + o_s, tl.where(m_low, b_of_m, -b_of_m), mask=m_s)
    tl.store(grad_u + start_s + o_s, b_of_u, mask=m_s)
    b_of_gamma = tl.where(m_s, -(b_of_exponent + b_grad) * b_log_m, 0.0)
    _store_grad_gamma(parts, b_of_gamma, i_row, i_block, channels, blocks, o_c, BC, LAST)


def haar_bounded_split(
    s: Tensor,  # [examples, length]
    u: Tensor,  # [examples, length]
    log_det: Tensor,  # [examples]
    x: Tensor,  # [examples, 2 length]
    gamma: Tensor,  # [channels]
    examples: int,
    channels: int,
    length: int,
    stride: int,
    last: bool,
) -> None:
    """``u = m**gamma atanh(d / m)``, and s and the log-determinant."""
    _with_log_det(_split, (s, u), log_det, (x, gamma), examples, channels, length, stride, last)


def haar_bounded_split_backward(
    grad_x: Tensor,  # [examples, 2 length]
    grad_gamma: Tensor,  # [channels]
    grad_s: Tensor,  # [examples, length]
    grad_u: Tensor,  # [examples, length]
    grad_log_det: Tensor,  # [examples]
    x: Tensor,  # [examples, 2 length]
    gamma: Tensor,  # [channels]
    examples: int,
    channels: int,
    length: int,
    stride: int,
    last: bool,
) -> None:
    """The gradients of x and gamma."""
    inputs = grad_s, grad_u, grad_log_det, x, gamma
    _with_grad_gamma(_split_backward, (grad_x,), grad_gamma, inputs, examples, channels, length, stride, last)


def haar_bounded_merge(
    x: Tensor,  # [examples, 2 length]
    log_det: Tensor,  # [examples]
    s: Tensor,  # [examples, length]
    u: Tensor,  # [examples, length]
    gamma: Tensor,  # [channels]
    examples: int,
    channels: int,
    length: int,
    stride: int,
    last: bool,
) -> None:
    """``d = m tanh(u / m**gamma)``, and the log-determinant."""
    _with_log_det(_merge, (x,), log_det, (s, u, gamma), examples, channels, length, stride, last)


def haar_bounded_merge_backward(
    grad_s: Tensor,  # [examples, length]
    grad_u: Tensor,  # [examples, length]
    grad_gamma: Tensor,  # [channels]
    grad_x: Tensor,  # [examples, 2 length]
    grad_log_det: Tensor,  # [examples]
    s: Tensor,  # [examples, length]
    u: Tensor,  # [examples, length]
    gamma: Tensor,  # [channels]
    examples: int,
    channels: int,
    length: int,
    stride: int,
    last: bool,
) -> None:
    """The gradients of s, u and gamma."""
    inputs = grad_x, grad_log_det, s, u, gamma
    _with_grad_gamma(_merge_backward, (grad_s, grad_u), grad_gamma, inputs, examples, channels, length, stride, last)


def _with_log_det(kernel, outputs, log_det, inputs, examples, channels, length, stride, last) -> None:
    """Run a kernel that leaves a part of the log-determinant for each block."""
    rows, blocks, sizes, _ = _plan(examples, channels, length, stride, last)
    if rows * blocks == 0:
        log_det.zero_()
        return
    parts = log_det if rows * blocks == examples else log_det.new_empty(examples, rows * blocks // examples)
    kernel[(rows * blocks,)](*outputs, parts, *inputs, *sizes, num_warps=WARPS)
    if parts is not log_det:
        add_parts(log_det, parts)


def _with_grad_gamma(kernel, outputs, grad_gamma, inputs, examples, channels, length, stride, last) -> None:
    """Run a kernel that leaves a part of the gradient of gamma for each block."""
    rows, blocks, sizes, turns = _plan(examples, channels, length, stride, last)
    if rows * blocks == 0:
        grad_gamma.zero_()
        return
    shape = (rows, blocks // turns, channels) if last else (examples, channels, blocks)
    parts = grad_gamma.new_empty(shape)
    kernel[(rows * blocks,)](*outputs, parts, *inputs, *sizes, num_warps=WARPS)
    torch.sum(parts, (0, 1) if last else (0, 2), out=grad_gamma)


def _plan(examples: int, channels: int, length: int, stride: int, last: bool):
    """Rows, blocks of one, what the kernels are told of the sizes, and blocks beside each other in the channels."""
    if not last:
        rows, length = examples * channels, length // max(channels, 1)
        blocks = triton.cdiv(length, BLOCK)
        return rows, blocks, (channels, length, stride, blocks, BLOCK, 1, False, stride == 1), 1
    width = min(triton.next_power_of_2(channels), CHANNELS)
    turns, length, stride = triton.cdiv(channels, width), length // channels, stride // channels
    blocks = triton.cdiv(length, BLOCK // width) * turns
    return examples, blocks, (channels, length, stride, blocks, BLOCK // width, width, True, False), turns
