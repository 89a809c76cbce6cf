"""Batch normalisation and ReLU: two launches in training, one in evaluation; two for the backward.

The first launch of a forward in training takes the moments of parts of each channel, the second merges them and
applies; those of a backward sum and apply likewise, while in evaluation the first launch applies too. Training reads x
twice and writes y once, then reads x and grad_y twice and writes grad_x once, so the floor is 3 and 5 times the bytes
of x over the memory's bandwidth, and 2 and 3 times in evaluation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._channels import (
    WARPS,
    entries_before,
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


@triton.jit
def _affine(weight, bias, b_var, o_channel, m_channel, EPS: tl.constexpr):
    """What is multiplied and added for each channel, and the reciprocal of its standard deviation."""
    b_reciprocal = 1.0 / tl.sqrt(b_var + EPS)
    b_weight = tl.load(weight + o_channel, mask=m_channel, other=0.0)
    return b_weight * b_reciprocal, tl.load(bias + o_channel, mask=m_channel, other=0.0), b_reciprocal


@triton.jit
def _forward(
    y,
    mean,  # [channels]
    var,  # [channels]
    x,
    weight,  # [channels]
    bias,  # [channels]
    parts,  # [2, channels, n_parts]
    channels,
    rows,
    sites,
    across,
    tiles,
    loops,
    n_parts,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BATCH: tl.constexpr,
    EPS: tl.constexpr,
    PARTS: tl.constexpr,
):
    i_block, i_part = tl.program_id(0) // n_parts, tl.program_id(0) % n_parts
    o_channel, m_channel = of_block(i_block, channels, LAST, COLUMNS)
    if BATCH:
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
    else:
        b_mean = tl.load(mean + o_channel, mask=m_channel, other=0.0)
        b_var = tl.load(var + o_channel, mask=m_channel, other=0.0)
    b_scale, b_bias, _ = _affine(weight, bias, b_var, o_channel, m_channel, EPS)
    for i_tile in range(i_part * loops, tl.minimum(i_part * loops + loops, tiles)):
        o_row, o_channel, o_site, m_x = tile(i_block, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS)
        o_x = place(o_row, o_channel, o_site, channels, sites, LAST)
        b_y = (wide(tl.load(x + o_x, mask=m_x, other=0.0)) - b_mean) * b_scale + b_bias
        tl.store(y + o_x, tl.where(b_y < 0, 0.0, b_y), mask=m_x)


@triton.jit
def _sums(
    grad_x,
    grad_y,
    x,
    weight,  # [channels]
    bias,  # [channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, n_parts]
    channels,
    rows,
    sites,
    across,
    tiles,
    loops,
    n_parts,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BATCH: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part = tl.program_id(0) // n_parts, tl.program_id(0) % n_parts
    o_channel, m_channel = of_block(i_block, channels, LAST, COLUMNS)
    b_mean = tl.load(mean + o_channel, mask=m_channel, other=0.0)
    b_var = tl.load(var + o_channel, mask=m_channel, other=0.0)
    b_scale, b_bias, _ = _affine(weight, bias, b_var, o_channel, m_channel, EPS)
    b_sum = tl.zeros([ROWS, COLUMNS], b_mean.dtype)
    b_product = tl.zeros([ROWS, COLUMNS], b_mean.dtype)
    for i_tile in range(i_part * loops, tl.minimum(i_part * loops + loops, tiles)):
        o_row, o_channel, o_site, m_x = tile(i_block, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS)
        o_x = place(o_row, o_channel, o_site, channels, sites, LAST)
        b_centred = wide(tl.load(x + o_x, mask=m_x, other=0.0)) - b_mean
        b_grad = wide(tl.load(grad_y + o_x, mask=m_x, other=0.0))
        b_grad = tl.where(b_centred * b_scale + b_bias <= 0, 0.0, b_grad)
        b_sum += b_grad
        b_product += tl.where(m_x, b_grad * b_centred, 0.0)
        if not BATCH:
            tl.store(grad_x + o_x, b_scale * b_grad, mask=m_x)
    b_sum, b_product = over_rows(b_sum, LAST), over_rows(b_product, LAST)
    store_parts(parts, i_block, i_part, b_sum, b_product, channels, n_parts, LAST, COLUMNS)


@triton.jit
def _backward(
    grad_x,
    grad_weight,  # [channels]
    grad_bias,  # [channels]
    grad_y,
    x,
    weight,  # [channels]
    bias,  # [channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, n_parts]
    channels,
    rows,
    sites,
    across,
    tiles,
    loops,
    n_parts,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BATCH: tl.constexpr,
    EPS: tl.constexpr,
    PARTS: tl.constexpr,
):
    i_block, i_part = tl.program_id(0), 0
    if BATCH:
        i_block, i_part = i_block // n_parts, i_block % n_parts
    o_channel, m_channel = of_block(i_block, channels, LAST, COLUMNS)
    b_mean = tl.load(mean + o_channel, mask=m_channel, other=0.0)
    b_var = tl.load(var + o_channel, mask=m_channel, other=0.0)
    b_scale, b_bias, b_reciprocal = _affine(weight, bias, b_var, o_channel, m_channel, EPS)
    b_sum, b_product = merge_sums(parts, o_channel, m_channel, channels, n_parts, LAST, PARTS)
    b_product *= b_reciprocal
    m_first = m_channel & (i_part == 0)
    tl.store(grad_weight + o_channel, b_product, mask=m_first)
    tl.store(grad_bias + o_channel, b_sum, mask=m_first)
    if BATCH:
        entries = entries_before(tiles, rows, sites, across, LAST, ROWS, COLUMNS)
        b_sum = (b_sum / entries).to(b_mean.dtype)
        b_slope = (b_product * b_reciprocal / entries).to(b_mean.dtype)
        for i_tile in range(i_part * loops, tl.minimum(i_part * loops + loops, tiles)):
            o_row, o_channel, o_site, m_x = tile(i_block, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS)
            o_x = place(o_row, o_channel, o_site, channels, sites, LAST)
            b_centred = wide(tl.load(x + o_x, mask=m_x, other=0.0)) - b_mean
            b_grad = wide(tl.load(grad_y + o_x, mask=m_x, other=0.0))
            b_grad = tl.where(b_centred * b_scale + b_bias <= 0, 0.0, b_grad)
            tl.store(grad_x + o_x, b_scale * (b_grad - b_sum - b_centred * b_slope), mask=m_x)


def batch_norm_relu(
    y: Tensor,  # [batch, channels, sites], or [batch, sites, channels] with the channels last
    mean: Tensor,  # [channels]
    var: Tensor,  # [channels]
    x: Tensor,  # as y
    weight: Tensor,  # [channels]
    bias: Tensor,  # [channels]
    batch: int,
    channels: int,
    sites: int,
    last: bool,
    statistics: bool,
    eps: float,
) -> None:
    """``y = relu((x - mean) / sqrt(var + eps) * weight + bias)``, with mean and var those of x if ``statistics``."""
    if batch * channels * sites == 0:
        return
    tiles = tiling(x, batch, channels, sites, last)
    grid = (tiles.blocks(channels) * tiles.parts,)
    parts = mean.new_empty(2, channels, tiles.parts, dtype=torch.float64) if statistics else mean
    if statistics:
        moments[grid](parts, x, channels, channels, 0, 1, 0, *tiles, False, num_warps=WARPS)
    _forward[grid](
        y,
        mean,
        var,
        x,
        weight,
        bias,
        parts,
        channels,
        *tiles,
        statistics,
        eps,
        triton.next_power_of_2(tiles.parts),
        num_warps=WARPS,
    )


def batch_norm_relu_backward(
    grad_x: Tensor,  # as x
    grad_weight: Tensor,  # [channels]
    grad_bias: Tensor,  # [channels]
    grad_y: Tensor,  # as x
    x: Tensor,  # [batch, channels, sites], or [batch, sites, channels] with the channels last
    weight: Tensor,  # [channels]
    bias: Tensor,  # [channels]
    mean: Tensor,  # [channels]
    var: Tensor,  # [channels]
    batch: int,
    channels: int,
    sites: int,
    last: bool,
    statistics: bool,
    eps: float,
) -> None:
    """The gradients; they flow through mean and var too if ``statistics``."""
    if batch * channels * sites == 0:
        grad_weight.zero_()
        grad_bias.zero_()
        return
    tiles = tiling(x, batch, channels, sites, last)
    count = tiles.blocks(channels)
    parts = mean.new_empty(2, channels, tiles.parts, dtype=torch.float64)
    _sums[(count * tiles.parts,)](
        grad_x, grad_y, x, weight, bias, mean, var, parts, channels, *tiles, statistics, eps, num_warps=WARPS
    )
    # In evaluation the sums are all that is left to do, by the first part of each block.
    grid = (count * (tiles.parts if statistics else 1),)
    _backward[grid](
        grad_x,
        grad_weight,
        grad_bias,
        grad_y,
        x,
        weight,
        bias,
        mean,
        var,
        parts,
        channels,
        *tiles,
        statistics,
        eps,
        triton.next_power_of_2(tiles.parts),
        num_warps=WARPS,
    )
