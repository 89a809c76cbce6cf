"""Batch normalisation and ReLU: two launches in training, one in evaluation; two for the backward.

In training one launch is enough where a channel has few entries, forward and backward. Otherwise the first launch of a
forward takes the moments of parts of each channel, the second merges them and
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
    Tiling,
    batch_statistics,
    given_statistics,
    kept_of,
    merge_sums,
    moments,
    moments_of_part,
    of_block,
    over_rows,
    own_statistics,
    place,
    program,
    store_parts,
    through_statistics,
    tile,
    tile_of_x,
    tiling,
)
from pnf.kernels._common import wide
from pnf.kernels._launch import cached_launch


@triton.jit
def affine(weight, bias, b_reciprocal, o_channel, m_channel):
    """What is multiplied and added for each channel."""
    b_weight = tl.load(weight + o_channel, mask=m_channel, other=0.0)
    return b_weight * b_reciprocal, tl.load(bias + o_channel, mask=m_channel, other=0.0)


@triton.jit
def _gradient(grad_y, x, b_mean, b_scale, b_bias, o_y, o_x, m_x):
    """The gradient of what ReLU is applied to, and the distance of x from its mean."""
    b_centred = wide(tl.load(x + o_x, mask=m_x, other=0.0)) - b_mean
    b_grad = wide(tl.load(grad_y + o_y, mask=m_x, other=0.0))
    return tl.where(b_centred * b_scale + b_bias <= 0, 0.0, b_grad), b_centred


@cached_launch
@triton.jit
def _forward(
    y,
    mean,  # [channels]
    var,  # [channels]
    x,
    weight,  # [channels]
    bias,  # [channels]
    parts,  # [2, channels, parts]
    tiles,
    kept,  # the channels of something of which x is a slice
    BATCH: tl.constexpr,
    ALONE: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    if ALONE:
        b_mean, b_squares = moments_of_part(x, i_block, first, last, tiles, kept)
        b_mean, b_reciprocal = own_statistics(mean, var, b_mean, b_squares, o_channel, m_channel, tiles, EPS)
    elif BATCH:
        b_mean, b_reciprocal = batch_statistics(mean, var, parts, i_part, o_channel, m_channel, tiles, EPS)
    else:
        b_mean, b_reciprocal = given_statistics(mean, var, o_channel, m_channel, EPS)
    b_scale, b_bias = affine(weight, bias, b_reciprocal, o_channel, m_channel)
    for i_tile in range(first, last):
        o_row, o_channel, o_site, m_x, o_x = tile_of_x(i_block, i_tile, tiles, kept)
        b_y = (wide(tl.load(x + o_x, mask=m_x, other=0.0)) - b_mean) * b_scale + b_bias
        o_y = place(o_row, o_channel, o_site, tiles.channels, tiles)
        tl.store(y + o_y, tl.where(b_y < 0, 0.0, b_y), mask=m_x)


@triton.jit
def _sums_of_part(grad_x, grad_y, x, b_mean, b_scale, b_bias, i_block, first, last, of, tiles, STORED: tl.constexpr):
    """The sums of the gradient, and of it times the distance from the mean, of each channel in some tiles.

    If STORED, the gradient of x is written, with statistics that are constants.
    """
    b_sum = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_mean.dtype)
    b_product = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_mean.dtype)
    for i_tile in range(first, last):
        o_row, o_channel, o_site, m_x = tile(i_block, i_tile, tiles.channels, tiles)
        o_y = place(o_row, o_channel, o_site, tiles.channels, tiles)
        o_x = place(o_row, o_channel, o_site, of, tiles)
        b_grad, b_centred = _gradient(grad_y, x, b_mean, b_scale, b_bias, o_y, o_x, m_x)
        b_sum += b_grad
        b_product += tl.where(m_x, b_grad * b_centred, 0.0)
        if STORED:
            tl.store(grad_x + o_y, b_scale * b_grad, mask=m_x)
    return over_rows(b_sum, tiles).to(tl.float64), over_rows(b_product, tiles).to(tl.float64)


@cached_launch
@triton.jit
def _sums(
    grad_x,
    grad_y,
    x,
    weight,  # [channels]
    bias,  # [channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, parts]
    of,  # channels of what x is a slice of
    tiles,
    BATCH: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    b_mean, b_reciprocal = given_statistics(mean, var, o_channel, m_channel, EPS)
    b_scale, b_bias = affine(weight, bias, b_reciprocal, o_channel, m_channel)
    b_sum, b_product = _sums_of_part(
        grad_x, grad_y, x, b_mean, b_scale, b_bias, i_block, first, last, of, tiles, not BATCH
    )
    store_parts(parts, i_block, i_part, b_sum, b_product, tiles)


@cached_launch
@triton.jit(do_not_specialize=["is_added"])
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
    parts,  # [2, channels, parts]
    added,  # as grad_x
    more,  # a slice of something like x
    of,  # channels of what x is a slice of
    of_more,  # and more
    is_added,
    tiles,
    BATCH: tl.constexpr,
    ALONE: tl.constexpr,
    EPS: tl.constexpr,
):
    i_block, i_part = tl.program_id(0), 0
    if BATCH:
        i_block, i_part, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    b_mean, b_reciprocal = given_statistics(mean, var, o_channel, m_channel, EPS)
    b_scale, b_bias = affine(weight, bias, b_reciprocal, o_channel, m_channel)
    if ALONE:
        b_sum, b_product = _sums_of_part(
            grad_x, grad_y, x, b_mean, b_scale, b_bias, i_block, first, last, of, tiles, False
        )
    else:
        b_sum, b_product = merge_sums(parts, o_channel, m_channel, tiles)
    m_first = m_channel & (i_part == 0)
    tl.store(grad_weight + o_channel, b_product * b_reciprocal, mask=m_first)
    tl.store(grad_bias + o_channel, b_sum, mask=m_first)
    if BATCH:
        b_constant, b_slope = through_statistics(b_sum, b_product, b_reciprocal, tiles)
        for i_tile in range(first, last):
            o_row, o_channel, o_site, m_x = tile(i_block, i_tile, tiles.channels, tiles)
            o_y = place(o_row, o_channel, o_site, tiles.channels, tiles)
            o_x = place(o_row, o_channel, o_site, of, tiles)
            b_grad, b_centred = _gradient(grad_y, x, b_mean, b_scale, b_bias, o_y, o_x, m_x)
            b_grad = b_scale * (b_grad - b_constant - b_centred * b_slope)
            m_more = m_x & (is_added != 0)
            b_grad += wide(tl.load(added + o_y, mask=m_more, other=0.0))
            o_more = place(o_row, o_channel, o_site, of_more, tiles)
            b_grad += wide(tl.load(more + o_more, mask=m_more, other=0.0))
            tl.store(grad_x + o_y, b_grad, mask=m_x)


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
    tiles, apart = tiling(x, batch, channels, sites, last, alone=statistics)
    parts = mean
    if statistics and tiles.programs() > 1:
        grid = (tiles.blocks(channels) * tiles.programs(),)
        parts = mean.new_empty(2, channels, tiles.programs(), dtype=torch.float64)
        moments[grid](parts, x, apart, kept_of(channels), num_warps=WARPS)
    normalise(y, mean, var, x, weight, bias, parts, channels, tiles, statistics, eps)


def normalise(
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    parts: Tensor,
    of: int,
    tiles: Tiling,
    statistics: bool,
    eps: float,
) -> None:
    """The launch that applies, after that of the moments if programs share a block.

    x may be a slice of a tensor of ``of`` channels.
    """
    grid = (tiles.blocks(tiles.channels) * tiles.programs(),)
    alone = statistics and tiles.programs() == 1
    others = tiles, kept_of(of), statistics, alone, eps
    _forward[grid](y, mean, var, x, weight, bias, parts, *others, num_warps=WARPS)


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
    of: int = 0,
    added: tuple[Tensor, Tensor, int] | None = None,
) -> None:
    """The gradients; they flow through mean and var too if ``statistics``.

    x may be a slice of a tensor of ``of`` channels. ``added`` are two tensors for grad_x to add to, of which the second
    is a slice, and its number of channels.
    """
    if batch * channels * sites == 0:
        grad_weight.zero_()
        grad_bias.zero_()
        return
    of = of or channels
    tiles, apart = tiling(x, batch, channels, sites, last, alone=statistics)
    count, parts = tiles.blocks(channels), mean
    alone = statistics and tiles.programs() == 1
    if not alone:
        parts = mean.new_empty(2, channels, tiles.programs(), dtype=torch.float64)
        _sums[(count * tiles.programs(),)](
            grad_x, grad_y, x, weight, bias, mean, var, parts, of, apart, statistics, eps, num_warps=WARPS
        )
    # In evaluation the sums are all that is left to do, by the first part of each block.
    grid = (count * (tiles.programs() if statistics else 1),)
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
        *((grad_y, x, of, of, 0) if added is None else (*added[:2], of, added[2], 1)),
        tiles,
        statistics,
        alone,
        eps,
        num_warps=WARPS,
    )
