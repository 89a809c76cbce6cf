"""Affine coupling: forward and inverse by blocks of examples, their backward by blocks of channels.

With n transformed entries, the forward reads x, shift and u and writes y: 4 n entries; the backward reads grad_y, x and
u and writes grad_x and both halves of grad_raw: 6 n, and 7 n for the inverse. Channels that are kept move twice more.
"""

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import add_parts, wide

BLOCK = 1024
COLUMNS = 128  # of a block of rows with the channels last, which leaves it enough rows to add up
WARPS = 4

CHECKERBOARD = tl.constexpr(1)
CHANNEL = tl.constexpr(2)


@triton.jit
def _tanh(b_u):
    """tanh(u) and 1 - tanh(u)**2, by one exp that cannot overflow; neither cancels."""
    b_a = tl.abs(b_u)
    b_e = tl.exp(-2.0 * b_a)
    b_inverse = 1.0 / (1.0 + b_e)
    if b_u.dtype == tl.float64:
        # exp(x) - 1 without the rounding of exp(x) near 1
        b_m = tl.where(b_e == 1.0, 2.0 * b_a, (1.0 - b_e) * (2.0 * b_a) / tl.where(b_e == 1.0, 1.0, -tl.log(b_e)))
        b_small = b_m / (2.0 - b_m)
    else:
        b_2 = b_a * b_a
        b_p = b_2 * -5.70498872745e-3 + 2.06390887954e-2
        b_p = b_p * b_2 - 5.37397155531e-2
        b_p = b_p * b_2 + 1.33314422036e-1
        b_p = b_p * b_2 - 3.33332819422e-1
        b_small = b_p * b_2 * b_a + b_a
    b_tanh = tl.where(b_a < 0.625, b_small, (1.0 - b_e) * b_inverse)
    return tl.where(b_u < 0.0, -b_tanh, b_tanh), 4.0 * b_e * b_inverse * b_inverse


@triton.jit
def _kept(o_site, width, parity):
    """Whether a site of a checkerboard is kept."""
    o_row = o_site // width
    return ((o_row + o_site - o_row * width) & 1) == parity


@triton.jit
def _forward(
    y,  # [batch, channels, sites] or [batch, sites, channels]
    out,  # [batch], or the parts of its sums [batch, blocks]
    x,
    raw,  # the same with 2 K channels
    scale,  # [K]
    log_det,  # [batch]
    batch,
    channels,
    moved,  # the first of the K channels that are transformed
    kept,  # the first of those that are not, under a channel mask
    transformed,  # K
    sites,
    width,
    parity,
    blocks,
    MASK: tl.constexpr,
    LAST: tl.constexpr,
    INVERSE: tl.constexpr,
    HUGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    length = transformed * sites
    i_block = tl.program_id(0) % blocks
    if HUGE:
        i_block = i_block.to(tl.int64)
    o_row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o = i_block * BLOCK + tl.arange(0, BLOCK)[None, :]
    m = (o_row < batch) & (o < length)
    if LAST:
        o_site = o // transformed
        o_channel = o - o_site * transformed
        o_shift = o + o_site * transformed
        o_u = o_shift + transformed
        o_x = o_site * channels + moved + o_channel if MASK == CHANNEL else o
        o_kept = o_site * channels + kept + o_channel
    else:
        o_channel = o // sites
        o_site = o - o_channel * sites
        o_shift = o
        o_u = o + length
        o_x = o + moved * sites
        o_kept = o + kept * sites
    x += o_row * (channels * sites)
    y += o_row * (channels * sites)
    raw += o_row * (2 * length)
    b_x = wide(tl.load(x + o_x, mask=m, other=0.0))
    b_shift = wide(tl.load(raw + o_shift, mask=m, other=0.0))
    b_s = tl.load(scale + o_channel, mask=o < length, other=0.0) * _tanh(wide(tl.load(raw + o_u, mask=m, other=0.0)))[0]
    b_y = (b_x - b_shift) * tl.exp(-b_s) if INVERSE else b_x * tl.exp(b_s) + b_shift
    if MASK == CHECKERBOARD:
        m_kept = _kept(o_site, width, parity)
        b_y = tl.where(m_kept, b_x, b_y)
        b_s = tl.where(m_kept, 0.0, b_s)
    tl.store(y + o_x, b_y, mask=m)
    if MASK == CHANNEL:
        tl.store(y + o_kept, tl.load(x + o_kept, mask=m), mask=m)
    b_sum = tl.sum(b_s, 1, keep_dims=True)
    if blocks == 1:
        b_log_det = tl.load(log_det + o_row, mask=o_row < batch)
        tl.store(out + o_row, b_log_det - b_sum if INVERSE else b_log_det + b_sum, mask=o_row < batch)
    else:
        tl.store(out + o_row * blocks + i_block, b_sum, mask=o_row < batch)


@triton.jit
def _add_log_det(
    out,  # [batch]
    parts,  # [batch, blocks]
    log_det,  # [batch]
    blocks,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    b_sum = tl.zeros((BLOCK,), parts.dtype.element_ty)
    for i in range(0, blocks, BLOCK):
        o = i + tl.arange(0, BLOCK)
        b_sum += tl.load(parts + i_row * blocks + o, mask=o < blocks, other=0.0)
    b_log_det, b_total = tl.load(log_det + i_row), tl.sum(b_sum, 0)
    tl.store(out + i_row, b_log_det - b_total if INVERSE else b_log_det + b_total)


@triton.jit
def _backward(
    grad_x,
    grad_raw,
    grad_scale,  # the parts of its sums [K, parts]
    grad_y,
    grad_log_det,  # [batch]
    x,
    raw,
    scale,  # [K]
    rows,  # examples, or pixels where the channels come last
    row_x,  # from row to row of x
    moved,  # where in a row the entries that are transformed begin
    kept,
    row_raw,
    half_raw,  # from shift to u
    columns,  # sites of a channel, or channels where they come last
    sites,
    width,
    parity,
    groups,  # of rows
    blocks,  # of columns
    MASK: tl.constexpr,
    LAST: tl.constexpr,
    INVERSE: tl.constexpr,
    HUGE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_part = tl.program_id(0) % (groups * blocks)
    i_channel = (tl.program_id(0) // (groups * blocks)).to(tl.int64)
    i_group, i_block = i_part // blocks, i_part % blocks
    if HUGE:
        i_block = i_block.to(tl.int64)
    o_row = i_group.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o = i_block * BLOCK + tl.arange(0, BLOCK)[None, :]
    m = (o_row < rows) & (o < columns)
    if LAST:
        b_scale = tl.load(scale + o, mask=o < columns, other=0.0)
        b_grad = tl.load(grad_log_det + o_row // sites, mask=o_row < rows, other=0.0)
        o_site = o_row % sites
    else:
        b_scale = tl.load(scale + i_channel)
        b_grad = tl.load(grad_log_det + o_row, mask=o_row < rows, other=0.0)
        o_site = o
    o_raw = o_row * row_raw + i_channel * columns
    o_kept = o_row * row_x + (kept + i_channel * columns)
    o_x = o_row * row_x + (moved + i_channel * columns)
    b_g = wide(tl.load(grad_y + o_x + o, mask=m, other=0.0))
    b_x = wide(tl.load(x + o_x + o, mask=m, other=0.0))
    b_tanh, b_slope = _tanh(wide(tl.load(raw + (o_raw + half_raw) + o, mask=m, other=0.0)))
    b_s = b_scale * b_tanh
    if INVERSE:
        b_gx = b_g * tl.exp(-b_s)
        b_gshift = -b_gx
        b_gs = b_gshift * (b_x - wide(tl.load(raw + o_raw + o, mask=m, other=0.0))) - b_grad
    else:
        b_gx = b_g * tl.exp(b_s)
        b_gshift = b_g
        b_gs = b_gx * b_x + b_grad
    b_gu = b_gs * b_scale * b_slope
    b_gscale = tl.where(m, b_gs * b_tanh, 0.0)
    if MASK == CHECKERBOARD:
        m_kept = _kept(o_site, width, parity)
        b_gx = tl.where(m_kept, b_g, b_gx)
        b_gshift = tl.where(m_kept, 0.0, b_gshift)
        b_gu = tl.where(m_kept, 0.0, b_gu)
        b_gscale = tl.where(m_kept, 0.0, b_gscale)
    tl.store(grad_x + o_x + o, b_gx, mask=m)
    tl.store(grad_raw + o_raw + o, b_gshift, mask=m)
    tl.store(grad_raw + (o_raw + half_raw) + o, b_gu, mask=m)
    if MASK == CHANNEL:
        tl.store(grad_x + o_kept + o, tl.load(grad_y + o_kept + o, mask=m), mask=m)
    if LAST:
        tl.store(grad_scale + o * groups + i_group, tl.sum(b_gscale, 0, keep_dims=True), mask=o < columns)
    else:
        tl.store(grad_scale + i_channel * (groups * blocks) + i_part, tl.sum(tl.sum(b_gscale, 1), 0))


def _run(inverse, y, out, x, raw, scale, log_det, batch, channels, height, width, mask, parity, last) -> None:
    transformed, sites = scale.numel(), height * width
    length = transformed * sites
    block = min(triton.next_power_of_2(max(length, 1)), BLOCK)
    rows = min(BLOCK // block, triton.next_power_of_2(max(batch, 1)))
    blocks = max(triton.cdiv(length, block), 1)
    if batch == 0:
        return
    parts = out if blocks == 1 else scale.new_empty(batch, blocks)
    _forward[(triton.cdiv(batch, rows) * blocks,)](
        y, parts, x, raw, scale, log_det, batch, channels,
        transformed if mask == CHANNEL and parity == 0 else 0, transformed if parity else 0, transformed, sites, width,
        parity, blocks,
        MASK=mask, LAST=last, INVERSE=inverse, HUGE=2 * channels * sites >= 2**31, ROWS=rows, BLOCK=block,
        num_warps=WARPS,
    )  # fmt: skip
    if blocks > 1:
        block = min(triton.next_power_of_2(blocks), BLOCK)
        _add_log_det[(batch,)](out, parts, log_det, blocks, INVERSE=inverse, BLOCK=block, num_warps=WARPS)


def _run_backward(
    inverse, grad_x, grad_raw, grad_scale, grad_y, grad_log_det, x, raw, scale,
    batch, channels, height, width, mask, parity, last,
) -> None:  # fmt: skip
    transformed, sites = scale.numel(), height * width
    by_rows = last or sites == 1
    rows, columns = (batch * sites, transformed) if by_rows else (batch, sites)
    if batch * transformed * sites == 0:
        grad_scale.zero_()
        return
    block = min(triton.next_power_of_2(columns), COLUMNS if by_rows else BLOCK)
    tile = min(BLOCK // block, triton.next_power_of_2(rows))
    groups, blocks = triton.cdiv(rows, tile), triton.cdiv(columns, block)
    count = groups if by_rows else groups * blocks
    parts = grad_scale if count == 1 else grad_scale.new_empty(transformed, count)
    plane = 1 if by_rows else sites
    _backward[(groups * blocks * (1 if by_rows else transformed),)](
        grad_x, grad_raw, parts, grad_y, grad_log_det, x, raw, scale, rows, channels * plane,
        plane * transformed if mask == CHANNEL and parity == 0 else 0, plane * transformed if parity else 0,
        2 * plane * transformed, plane * transformed, columns, sites, width, parity, groups, blocks,
        MASK=mask, LAST=by_rows, INVERSE=inverse, HUGE=columns >= 2**31, ROWS=tile, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    if count > 1:
        add_parts(grad_scale, parts)


def affine_coupling(
    y: Tensor,  # [batch, channels, height, width], contiguous or with its channels last
    out: Tensor,  # [batch]
    x: Tensor,
    raw: Tensor,  # the same with 2 K channels
    scale: Tensor,  # [K]
    log_det: Tensor,  # [batch]
    batch: int,
    channels: int,
    height: int,
    width: int,
    mask: int,
    parity: int,
    last: bool,
) -> None:
    """``y = x exp(s) + shift``, ``out = log_det + sum(s)``, ``s = scale tanh(u)``."""
    _run(False, y, out, x, raw, scale, log_det, batch, channels, height, width, mask, parity, last)


def affine_coupling_inverse(
    x: Tensor,  # [batch, channels, height, width], contiguous or with its channels last
    out: Tensor,  # [batch]
    y: Tensor,
    raw: Tensor,  # the same with 2 K channels
    scale: Tensor,  # [K]
    log_det: Tensor,  # [batch]
    batch: int,
    channels: int,
    height: int,
    width: int,
    mask: int,
    parity: int,
    last: bool,
) -> None:
    """``x = (y - shift) exp(-s)``, ``out = log_det - sum(s)``."""
    _run(True, x, out, y, raw, scale, log_det, batch, channels, height, width, mask, parity, last)


def affine_coupling_backward(
    grad_x: Tensor,  # [batch, channels, height, width], contiguous or with its channels last
    grad_raw: Tensor,  # the same with 2 K channels
    grad_scale: Tensor,  # [K]
    grad_y: Tensor,
    grad_log_det: Tensor,  # [batch]
    x: Tensor,
    raw: Tensor,
    scale: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    mask: int,
    parity: int,
    last: bool,
) -> None:
    """The gradients of :func:`affine_coupling` in x, raw and scale."""
    _run_backward(
        False, grad_x, grad_raw, grad_scale, grad_y, grad_log_det, x, raw, scale,
        batch, channels, height, width, mask, parity, last,
    )  # fmt: skip


def affine_coupling_inverse_backward(
    grad_y: Tensor,  # [batch, channels, height, width], contiguous or with its channels last
    grad_raw: Tensor,  # the same with 2 K channels
    grad_scale: Tensor,  # [K]
    grad_x: Tensor,
    grad_log_det: Tensor,  # [batch]
    y: Tensor,
    raw: Tensor,
    scale: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    mask: int,
    parity: int,
    last: bool,
) -> None:
    """The gradients of :func:`affine_coupling_inverse` in y, raw and scale."""
    _run_backward(
        True, grad_y, grad_raw, grad_scale, grad_x, grad_log_det, y, raw, scale,
        batch, channels, height, width, mask, parity, last,
    )  # fmt: skip
