"""The first stage of a conditioner network: a launch, and one before it where statistics are taken or gradients summed.

In training the first launch of a forward takes the moments of parts of each channel that is kept, and the second merges
them and writes; the first of a backward takes sums, and the second merges and applies them. With given statistics a
forward is one launch, while the first of a backward applies too, and the second merges the sums. Where nothing is
normalised both are one launch.

Training reads what is kept of x twice, the condition once, and writes h once; the backward reads what is kept of x and
its two channels of grad_h twice and writes grad_x once. Otherwise each is read once. So these bytes over the memory's
bandwidth are the floor; but what a checkerboard keeps shares the bytes of an access with what it does not, unless the
channels are last, so that all of x is read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._channels import (
    WARPS,
    entries_before,
    kept,
    load_kept,
    merge_moments,
    merge_sums,
    moments,
    of_block,
    over_rows,
    place,
    store_parts,
    tile,
    tiling,
)
from pnf.kernels._common import wide

NONE, GIVEN, BATCH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""How v is normalised."""


@triton.jit
def _parameters(mean, var, offset, o_channel, m_channel, EPS: tl.constexpr):
    """Mean, reciprocal standard deviation and offset of each channel."""
    b_mean = tl.load(mean + o_channel, mask=m_channel, other=0.0)
    b_var = tl.load(var + o_channel, mask=m_channel, other=0.0)
    return b_mean, 1.0 / tl.sqrt(b_var + EPS), tl.load(offset + o_channel, mask=m_channel, other=0.0)


@triton.jit
def _forward(
    h,
    mean,  # [channels]
    var,  # [channels]
    x,
    condition,
    offset,  # [channels]
    parts,  # [2, channels, n_parts]
    columns,
    conditions,
    blocks,
    channels,
    x_channels,
    start,
    width,
    parity,
    rows,
    sites,
    across,
    tiles,
    loops,
    n_parts,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BOARD: tl.constexpr,
    NORM: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
    PARTS: tl.constexpr,
):
    i_block, i_part = tl.program_id(0) // n_parts, tl.program_id(0) % n_parts
    first, last = i_part * loops, tl.minimum(i_part * loops + loops, tiles)
    if i_block < blocks:
        o_channel, m_channel = of_block(i_block, channels, LAST, COLUMNS)
        if NORM == BATCH:
            b_mean, b_var = merge_moments(
                parts,
                o_channel,
                m_channel,
                channels,
                rows,
                sites,
                across,
                tiles,
                loops,
                n_parts,
                LAST,
                ROWS,
                COLUMNS,
                PARTS,
            )
            b_mean, b_var = b_mean.to(mean.dtype.element_ty), b_var.to(var.dtype.element_ty)
            tl.store(mean + o_channel, b_mean, mask=m_channel & (i_part == 0))
            tl.store(var + o_channel, b_var, mask=m_channel & (i_part == 0))
            b_scale = 1.0 / tl.sqrt(b_var + EPS)
            b_offset = tl.load(offset + o_channel, mask=m_channel, other=0.0)
        if NORM == GIVEN:
            b_mean, b_scale, b_offset = _parameters(mean, var, offset, o_channel, m_channel, EPS)
        for i_tile in range(first, last):
            o_row, o_channel, o_site, m_x = tile(i_block, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS)
            o_x = place(o_row, start + o_channel, o_site, x_channels, sites, LAST)
            b_v = load_kept(x, o_x, o_site, m_x, width, parity, LAST, BOARD)
            if NORM != NONE:
                b_v = (b_v - b_mean) * b_scale + b_offset
            b_v *= GAIN
            o_h = place(o_row, o_channel, o_site, columns, sites, LAST)
            tl.store(h + o_h, tl.where(b_v < 0, 0.0, b_v), mask=m_x)
            o_h = place(o_row, channels + o_channel, o_site, columns, sites, LAST)
            tl.store(h + o_h, tl.where(b_v > 0, 0.0, -b_v), mask=m_x)
    else:
        for i_tile in range(first, last):
            rest = columns - 2 * channels
            o_row, o_rest, o_site, m_h = tile(i_block - blocks, i_tile, rows, rest, sites, across, LAST, ROWS, COLUMNS)
            m_h = m_h & (o_rest < rest)
            o_h = place(o_row, 2 * channels + o_rest, o_site, columns, sites, LAST)
            if BOARD:
                tl.store(h + o_h, kept(o_site, width, parity).to(tl.float32), mask=m_h & (o_rest == 0))
            o_rest = o_rest - BOARD
            m_h = m_h & (o_rest >= 0)
            o_condition = place(o_row, o_rest, o_site, conditions, sites, LAST)
            tl.store(h + o_h, tl.load(condition + o_condition, mask=m_h, other=0.0), mask=m_h)


@triton.jit
def _gradient(grad_h, b_v, o_row, o_channel, o_site, m_x, columns, channels, sites, LAST: tl.constexpr):
    """The gradient of v from those of relu(v) and relu(-v)."""
    o_h = place(o_row, o_channel, o_site, columns, sites, LAST)
    b_positive = wide(tl.load(grad_h + o_h, mask=m_x, other=0.0))
    o_h = place(o_row, channels + o_channel, o_site, columns, sites, LAST)
    b_negative = wide(tl.load(grad_h + o_h, mask=m_x, other=0.0))
    return tl.where(b_v <= 0, 0.0, b_positive) - tl.where(b_v >= 0, 0.0, b_negative)


@triton.jit
def _sums(
    grad_x,
    grad_h,
    x,
    offset,  # [channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, n_parts]
    columns,
    channels,
    x_channels,
    start,
    width,
    parity,
    rows,
    sites,
    across,
    tiles,
    loops,
    n_parts,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BOARD: tl.constexpr,
    NORM: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part = tl.program_id(0) // n_parts, tl.program_id(0) % n_parts
    o_channel, m_channel = of_block(i_block, channels, LAST, COLUMNS)
    b_mean, b_scale, b_offset = _parameters(mean, var, offset, o_channel, m_channel, EPS)
    b_sum = tl.zeros([ROWS, COLUMNS], b_mean.dtype)
    b_product = tl.zeros([ROWS, COLUMNS], b_mean.dtype)
    for i_tile in range(i_part * loops, tl.minimum(i_part * loops + loops, tiles)):
        o_row, o_channel, o_site, m_x = tile(i_block, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS)
        o_x = place(o_row, start + o_channel, o_site, x_channels, sites, LAST)
        b_centred = load_kept(x, o_x, o_site, m_x, width, parity, LAST, BOARD) - b_mean
        b_v = (b_centred * b_scale + b_offset) * GAIN
        b_grad = _gradient(grad_h, b_v, o_row, o_channel, o_site, m_x, columns, channels, sites, LAST) * GAIN
        b_sum += b_grad
        b_product += tl.where(m_x, b_grad * b_centred, 0.0)
        if NORM == GIVEN:
            b_grad = tl.where(kept(o_site, width, parity), b_grad, 0.0) if BOARD else b_grad
            tl.store(grad_x + o_x, b_grad * b_scale, mask=m_x)
    b_sum, b_product = over_rows(b_sum, LAST), over_rows(b_product, LAST)
    store_parts(parts, i_block, i_part, b_sum, b_product, channels, n_parts, LAST, COLUMNS)


@triton.jit
def _backward(
    grad_x,
    grad_offset,  # [channels]
    grad_h,
    x,
    offset,  # [channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, n_parts]
    columns,
    blocks,
    channels,
    x_channels,
    start,
    width,
    parity,
    rows,
    sites,
    across,
    tiles,
    loops,
    n_parts,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BOARD: tl.constexpr,
    NORM: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
    PARTS: tl.constexpr,
):
    i_block, i_part = tl.program_id(0) // n_parts, tl.program_id(0) % n_parts
    first, last = i_part * loops, tl.minimum(i_part * loops + loops, tiles)
    if i_block < blocks:
        o_channel, m_channel = of_block(i_block, channels, LAST, COLUMNS)
        if NORM != NONE:
            b_mean, b_scale, b_offset = _parameters(mean, var, offset, o_channel, m_channel, EPS)
            b_sum, b_product = merge_sums(parts, o_channel, m_channel, channels, n_parts, LAST, PARTS)
            tl.store(grad_offset + o_channel, b_sum, mask=m_channel & (i_part == 0))
        if NORM == BATCH:
            entries = entries_before(tiles, rows, sites, across, LAST, ROWS, COLUMNS)
            b_sum = (b_sum / entries).to(b_mean.dtype)
            b_slope = (b_product * b_scale * b_scale / entries).to(b_mean.dtype)
        if NORM != GIVEN:
            for i_tile in range(first, last):
                o_row, o_channel, o_site, m_x = tile(
                    i_block, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS
                )
                o_x = place(o_row, start + o_channel, o_site, x_channels, sites, LAST)
                b_v = load_kept(x, o_x, o_site, m_x, width, parity, LAST, BOARD)
                if NORM == BATCH:
                    b_centred = b_v - b_mean
                    b_v = b_centred * b_scale + b_offset
                b_v *= GAIN
                m_grad = m_x
                if BOARD and LAST:
                    m_grad = m_x & kept(o_site, width, parity)
                b_grad = _gradient(grad_h, b_v, o_row, o_channel, o_site, m_grad, columns, channels, sites, LAST) * GAIN
                if NORM == BATCH:
                    b_grad = b_scale * (b_grad - b_sum - b_centred * b_slope)
                if BOARD:
                    b_grad = tl.where(kept(o_site, width, parity), b_grad, 0.0)
                tl.store(grad_x + o_x, b_grad, mask=m_x)
    else:
        for i_tile in range(first, last):
            o_row, o_channel, o_site, m_x = tile(
                i_block - blocks, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS
            )
            # The other half of the channels.
            o_x = place(o_row, channels - start + o_channel, o_site, x_channels, sites, LAST)
            tl.store(grad_x + o_x, tl.zeros([ROWS, COLUMNS], tl.float32), mask=m_x)


def conditioner_input(
    h: Tensor,  # [batch, 2 kept + board + conditions, height, width]
    mean: Tensor,  # [kept]
    var: Tensor,  # [kept]
    x: Tensor,  # [batch, channels, height, width]
    condition: Tensor,  # [batch, conditions, height, width]
    offset: Tensor,  # [kept]
    batch: int,
    channels: int,
    start: int,
    kept: int,
    conditions: int,
    height: int,
    width: int,
    board: bool,
    parity: int,
    last: bool,
    norm: int,
    gain: float,
    eps: float,
) -> None:
    """``h = [relu(v), relu(-v), board, condition]``, ``v = gain ((kept - mean) / sqrt(var + eps) + offset)``.

    All images have their channels last or none has. With norm = 2 mean and var are those of the channels
    [start, start + kept) of x, zero where a board does not keep them, and are written; with norm = 1 they are given,
    and with norm = 0 nothing is normalised.
    """
    sites, columns = height * width, 2 * kept + board + conditions
    if batch * sites * columns == 0:
        return
    tiles = tiling(x, batch, kept, sites, last)
    blocks, rest = tiles.blocks(kept), tiles.blocks(columns - 2 * kept)
    parts = mean
    if norm == BATCH.value and kept:
        parts = mean.new_empty(2, kept, tiles.parts, dtype=torch.float64)
        moments[(blocks * tiles.parts,)](parts, x, kept, channels, start, width, parity, *tiles, board, num_warps=WARPS)
    _forward[((blocks + rest) * tiles.parts,)](
        h,
        mean,
        var,
        x,
        condition,
        offset,
        parts,
        columns,
        conditions,
        blocks,
        kept,
        channels,
        start,
        width,
        parity,
        *tiles,
        board,
        norm,
        gain,
        eps,
        triton.next_power_of_2(tiles.parts),
        num_warps=WARPS,
    )


def conditioner_input_backward(
    grad_x: Tensor,  # [batch, channels, height, width]
    grad_offset: Tensor,  # [kept]
    grad_h: Tensor,  # [batch, 2 kept + board + conditions, height, width]
    x: Tensor,  # [batch, channels, height, width]
    offset: Tensor,  # [kept]
    mean: Tensor,  # [kept]
    var: Tensor,  # [kept]
    batch: int,
    channels: int,
    start: int,
    kept: int,
    conditions: int,
    height: int,
    width: int,
    board: bool,
    parity: int,
    last: bool,
    norm: int,
    gain: float,
    eps: float,
) -> None:
    """The gradients of x and offset; they flow through mean and var too with norm = 2."""
    sites, columns = height * width, 2 * kept + board + conditions
    if batch * sites * kept == 0:
        grad_offset.zero_()
        return
    tiles = tiling(x, batch, kept, sites, last)
    blocks = tiles.blocks(kept)
    parts = mean
    if norm != NONE.value:
        parts = mean.new_empty(2, kept, tiles.parts, dtype=torch.float64)
        _sums[(blocks * tiles.parts,)](
            grad_x,
            grad_h,
            x,
            offset,
            mean,
            var,
            parts,
            columns,
            kept,
            channels,
            start,
            width,
            parity,
            *tiles,
            board,
            norm,
            gain,
            eps,
            num_warps=WARPS,
        )
    _backward[((1 if board else 2) * blocks * tiles.parts,)](
        grad_x,
        grad_offset,
        grad_h,
        x,
        offset,
        mean,
        var,
        parts,
        columns,
        blocks,
        kept,
        channels,
        start,
        width,
        parity,
        *tiles,
        board,
        norm,
        gain,
        eps,
        triton.next_power_of_2(tiles.parts),
        num_warps=WARPS,
    )
