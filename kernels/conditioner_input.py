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
    batch_statistics,
    given_statistics,
    half_of,
    kept_of,
    load_kept,
    merge_sums,
    moments,
    of_block,
    on_kept,
    over_rows,
    place,
    program,
    store_parts,
    through_statistics,
    tile,
    tile_of_x,
    tiling,
)
from pnf.kernels._common import value, wide
from pnf.kernels._launch import cached_launch

NONE, GIVEN, BATCH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""How v is normalised."""


@cached_launch
@triton.jit(do_not_specialize=["columns", "conditions", "blocks"])
def _forward(
    h,
    mean,  # [channels]
    var,  # [channels]
    x,
    condition,
    offset,  # [channels]
    parts,  # [2, channels, parts]
    columns,
    conditions,
    blocks,
    tiles,
    kept,
    NORM: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    if i_block < blocks:
        o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
        if NORM == BATCH:
            b_mean, b_scale = batch_statistics(mean, var, parts, i_part, o_channel, m_channel, tiles, EPS)
        if NORM == GIVEN:
            b_mean, b_scale = given_statistics(mean, var, o_channel, m_channel, EPS)
        if NORM != NONE:
            b_offset = tl.load(offset + o_channel, mask=m_channel, other=0.0)
        for i_tile in range(first, last):
            o_row, o_channel, o_site, m_x, o_x = tile_of_x(i_block, i_tile, tiles, kept)
            b_v = load_kept(x, o_x, o_site, m_x, tiles, kept)
            if NORM != NONE:
                b_v = (b_v - b_mean) * b_scale + b_offset
            b_v *= GAIN
            o_h = place(o_row, o_channel, o_site, columns, tiles)
            tl.store(h + o_h, tl.where(b_v < 0, 0.0, b_v), mask=m_x)
            o_h = place(o_row, tiles.channels + o_channel, o_site, columns, tiles)
            tl.store(h + o_h, tl.where(b_v > 0, 0.0, -b_v), mask=m_x)
    else:
        for i_tile in range(first, last):
            rest = columns - 2 * tiles.channels
            o_row, o_rest, o_site, m_h = tile(i_block - blocks, i_tile, rest, tiles)
            m_h = m_h & (o_rest < rest)
            o_h = place(o_row, 2 * tiles.channels + o_rest, o_site, columns, tiles)
            if kept.BOARD:
                b_board = on_kept(o_site, kept).to(tl.float32)
                tl.store(h + o_h, b_board, mask=m_h & (o_rest == 0))
            o_rest = o_rest - kept.BOARD
            m_h = m_h & (o_rest >= 0)
            o_condition = place(o_row, o_rest, o_site, conditions, tiles)
            tl.store(h + o_h, tl.load(condition + o_condition, mask=m_h, other=0.0), mask=m_h)


@triton.jit
def _gradient(grad_h, b_v, o_row, o_channel, o_site, m_x, columns, tiles):
    """The gradient of v from those of relu(v) and relu(-v)."""
    o_h = place(o_row, o_channel, o_site, columns, tiles)
    b_positive = wide(tl.load(grad_h + o_h, mask=m_x, other=0.0))
    o_h = place(o_row, tiles.channels + o_channel, o_site, columns, tiles)
    b_negative = wide(tl.load(grad_h + o_h, mask=m_x, other=0.0))
    return tl.where(b_v <= 0, 0.0, b_positive) - tl.where(b_v >= 0, 0.0, b_negative)


@cached_launch
@triton.jit(do_not_specialize=["columns"])
def _sums(
    grad_x,
    grad_h,
    x,
    offset,  # [channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, parts]
    columns,
    tiles,
    kept,
    NORM: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    b_mean, b_scale = given_statistics(mean, var, o_channel, m_channel, EPS)
    b_offset = tl.load(offset + o_channel, mask=m_channel, other=0.0)
    b_sum = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_mean.dtype)
    b_product = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_mean.dtype)
    for i_tile in range(first, last):
        o_row, o_channel, o_site, m_x, o_x = tile_of_x(i_block, i_tile, tiles, kept)
        b_centred = load_kept(x, o_x, o_site, m_x, tiles, kept) - b_mean
        b_v = (b_centred * b_scale + b_offset) * GAIN
        b_grad = _gradient(grad_h, b_v, o_row, o_channel, o_site, m_x, columns, tiles) * GAIN
        b_sum += b_grad
        b_product += tl.where(m_x, b_grad * b_centred, 0.0)
        if NORM == GIVEN:
            b_grad = tl.where(on_kept(o_site, kept), b_grad, 0.0) if kept.BOARD else b_grad
            tl.store(grad_x + o_x, b_grad * b_scale, mask=m_x)
    store_parts(parts, i_block, i_part, over_rows(b_sum, tiles), over_rows(b_product, tiles), tiles)


@cached_launch
@triton.jit(do_not_specialize=["columns", "blocks"])
def _backward(
    grad_x,
    grad_offset,  # [channels]
    grad_h,
    x,
    offset,  # [channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, parts]
    columns,
    blocks,
    tiles,
    kept,
    NORM: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    if i_block < blocks:
        o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
        if NORM != NONE:
            b_mean, b_scale = given_statistics(mean, var, o_channel, m_channel, EPS)
            b_offset = tl.load(offset + o_channel, mask=m_channel, other=0.0)
            b_sum, b_product = merge_sums(parts, o_channel, m_channel, tiles)
            tl.store(grad_offset + o_channel, b_sum, mask=m_channel & (i_part == 0))
        if NORM == BATCH:
            b_constant, b_slope = through_statistics(b_sum, b_product, b_scale, tiles)
        if NORM != GIVEN:
            for i_tile in range(first, last):
                o_row, o_channel, o_site, m_x, o_x = tile_of_x(i_block, i_tile, tiles, kept)
                b_v = load_kept(x, o_x, o_site, m_x, tiles, kept)
                if NORM == BATCH:
                    b_centred = b_v - b_mean
                    b_v = b_centred * b_scale + b_offset
                b_v *= GAIN
                m_grad = m_x
                if kept.BOARD and tiles.LAST:
                    m_grad = m_x & on_kept(o_site, kept)
                b_grad = _gradient(grad_h, b_v, o_row, o_channel, o_site, m_grad, columns, tiles) * GAIN
                if NORM == BATCH:
                    b_grad = b_scale * (b_grad - b_constant - b_centred * b_slope)
                if kept.BOARD:
                    b_grad = tl.where(on_kept(o_site, kept), b_grad, 0.0)
                tl.store(grad_x + o_x, b_grad, mask=m_x)
    else:
        for i_tile in range(first, last):
            o_row, o_channel, o_site, m_x = tile(i_block - blocks, i_tile, tiles.channels, tiles)
            # The other half of the channels.
            o_x = place(o_row, tiles.channels - value(kept.start) + o_channel, o_site, kept.channels, tiles)
            tl.store(grad_x + o_x, tl.zeros([tiles.ROWS, tiles.COLUMNS], tl.float32), mask=m_x)


def conditioner_input(
    h: Tensor,  # [batch, 2 n_kept + board + conditions, height, width]
    mean: Tensor,  # [n_kept]
    var: Tensor,  # [n_kept]
    x: Tensor,  # [batch, channels, height, width]
    condition: Tensor,  # [batch, conditions, height, width]
    offset: Tensor,  # [n_kept]
    batch: int,
    channels: int,
    start: int,
    n_kept: int,
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
    [start, start + n_kept) of x, zero where a board does not keep them, and are written; with norm = 1 they are given,
    and with norm = 0 nothing is normalised.
    """
    sites, columns = height * width, 2 * n_kept + board + conditions
    if batch * sites * columns == 0:
        return
    tiles, apart = tiling(x, batch, n_kept, sites, last)
    blocks, rest = tiles.blocks(n_kept), tiles.blocks(columns - 2 * n_kept)
    kept = kept_of(channels, start, width, parity, board)
    parts = mean
    if norm == BATCH.value and n_kept:
        parts = mean.new_empty(2, n_kept, tiles.programs(), dtype=torch.float64)
        # With the channels last that of batch_norm is as good, so that one kernel less is compiled.
        half = half_of(channels, "channel", parity, width) if last and not board else kept
        moments[(blocks * tiles.programs(),)](parts, x, apart, half, num_warps=WARPS)
    _forward[((blocks + rest) * tiles.programs(),)](
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
        tiles,
        kept,
        norm,
        gain,
        eps,
        num_warps=WARPS,
    )


def conditioner_input_backward(
    grad_x: Tensor,  # [batch, channels, height, width]
    grad_offset: Tensor,  # [n_kept]
    grad_h: Tensor,  # [batch, 2 n_kept + board + conditions, height, width]
    x: Tensor,  # [batch, channels, height, width]
    offset: Tensor,  # [n_kept]
    mean: Tensor,  # [n_kept]
    var: Tensor,  # [n_kept]
    batch: int,
    channels: int,
    start: int,
    n_kept: int,
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
    sites, columns = height * width, 2 * n_kept + board + conditions
    if batch * sites * n_kept == 0:
        grad_offset.zero_()
        return
    tiles, apart = tiling(x, batch, n_kept, sites, last)
    blocks = tiles.blocks(n_kept)
    kept = kept_of(channels, start, width, parity, board)
    parts = mean
    if norm != NONE.value:
        parts = mean.new_empty(2, n_kept, tiles.programs(), dtype=torch.float64)
        _sums[(blocks * tiles.programs(),)](
            grad_x,
            grad_h,
            x,
            offset,
            mean,
            var,
            parts,
            columns,
            apart,
            kept,
            norm,
            gain,
            eps,
            num_warps=WARPS,
        )
    _backward[((1 if board else 2) * blocks * tiles.programs(),)](
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
        tiles,
        kept,
        norm,
        gain,
        eps,
        num_warps=WARPS,
    )
