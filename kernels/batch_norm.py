"""Batch normalisation as a layer of a flow: two launches in training, one in evaluation; two for the backward.

The first launch of a forward in training takes the moments of parts of each channel. The second merges them, writes y,
and in one more program the few log-determinants. The first of a backward sums for parts of each channel, and the second
merges the sums and writes grad_x. Training reads x twice and writes y once, then reads x and grad_y twice and writes
grad_x once, so the floor is 3 and 5 times the bytes of x over the memory's bandwidth, and 2 and 3 times in evaluation.

Under a mask one half of x is normalised, and a thread copies as many entries of the other half, so that no half is
packed. The floor counts that half once as read and once as written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._channels import (
    WARPS,
    Kept,
    batch_statistics,
    given_statistics,
    half_of,
    kept_of,
    merge_moments,
    merge_sums,
    moments,
    of_block,
    over_rows,
    program,
    store_parts,
    through_statistics,
    tile_of_x,
    tiling,
)
from pnf.kernels._common import log, sum_of, wide
from pnf.kernels._launch import cached_launch

BLOCK = 1024
"""Log-determinants that are taken at a time."""


@triton.jit
def _entries(i_block, i_tile, tiles, half):
    """Which entries of a tile of a half exist, and where they lie in x."""
    _, _, _, m_x, o_x = tile_of_x(i_block, i_tile, tiles, half)
    return m_x, o_x


@triton.jit
def _copy(y, x, i_block, i_tile, tiles, rest):
    """Copy as many entries of the half that is not normalised."""
    m_x, o_x = _entries(i_block, i_tile, tiles, rest)
    tl.store(y + o_x, tl.load(x + o_x, mask=m_x), mask=m_x)


@cached_launch
@triton.jit(do_not_specialize=["batch", "sites", "blocks"])
def _forward(
    y,
    out,  # [batch]
    mean,  # [channels]
    var,  # [channels]
    x,
    log_det,  # [batch]
    parts,  # [2, channels, parts]
    batch,
    sites,
    blocks,
    tiles,
    half,
    rest,
    MASKED: tl.constexpr,
    BATCH: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    if i_block < blocks:
        o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
        if BATCH:
            b_mean, b_scale = batch_statistics(mean, var, parts, i_part, o_channel, m_channel, tiles, EPS)
        else:
            b_mean, b_scale = given_statistics(mean, var, o_channel, m_channel, EPS)
        for i_tile in range(first, last):
            m_x, o_x = _entries(i_block, i_tile, tiles, half)
            b_x = wide(tl.load(x + o_x, mask=m_x, other=0.0))
            tl.store(y + o_x, (b_x - b_mean) * b_scale, mask=m_x)
            if MASKED:
                _copy(y, x, i_block, i_tile, tiles, rest)
    elif i_part == 0:
        b_sum = tl.zeros([1, 1], tl.float64)
        for i in range(blocks):
            o_channel, m_channel = of_block(i, tiles.channels, tiles)
            if BATCH:
                b_var = merge_moments(parts, o_channel, m_channel, tiles)[1].to(var.dtype.element_ty)
            else:
                b_var = tl.load(var + o_channel, mask=m_channel, other=0.0)
            b_log = tl.where(b_var + EPS == 0.0, -float("inf"), log(b_var + EPS))
            b_log = tl.where(m_channel, b_log, 0.0)
            b_sum += tl.sum(b_log, 1, keep_dims=True).to(tl.float64)
        b_gain = b_sum * sites * -0.5
        for i in range(0, batch, BLOCK):
            o_out = i + tl.arange(0, BLOCK)[None, :]
            b_log_det = tl.load(log_det + o_out, mask=o_out < batch, other=0.0)
            tl.store(out + o_out, b_log_det + b_gain, mask=o_out < batch)


@cached_launch
@triton.jit
def _sums(
    grad_y,
    x,
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, parts]
    tiles,
    half,
    EPS: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    b_mean, _ = given_statistics(mean, var, o_channel, m_channel, EPS)
    b_sum = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_mean.dtype)
    b_product = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_mean.dtype)
    for i_tile in range(first, last):
        m_x, o_x = _entries(i_block, i_tile, tiles, half)
        b_grad = wide(tl.load(grad_y + o_x, mask=m_x, other=0.0))
        b_sum += b_grad
        b_product += tl.where(m_x, b_grad * (wide(tl.load(x + o_x, mask=m_x, other=0.0)) - b_mean), 0.0)
    store_parts(parts, i_block, i_part, over_rows(b_sum, tiles), over_rows(b_product, tiles), tiles)


@cached_launch
@triton.jit(do_not_specialize=["batch"])
def _backward(
    grad_x,
    grad_y,
    grad_log_det,  # [batch]
    x,
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, parts]
    batch,
    tiles,
    half,
    rest,
    MASKED: tl.constexpr,
    BATCH: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_block, _, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    b_mean, b_scale = given_statistics(mean, var, o_channel, m_channel, EPS)
    if BATCH:
        # The log-determinant is -sites / 2 * log(var + eps) for each example.
        b_gain = sum_of(grad_log_det, batch, BLOCK) / batch
        b_sum, b_product = merge_sums(parts, o_channel, m_channel, tiles)
        b_constant, b_slope = through_statistics(b_sum, b_product, b_scale, tiles)
        b_slope += (b_gain * b_scale).to(b_scale.dtype)
    for i_tile in range(first, last):
        m_x, o_x = _entries(i_block, i_tile, tiles, half)
        b_grad = wide(tl.load(grad_y + o_x, mask=m_x, other=0.0))
        if BATCH:
            b_centred = wide(tl.load(x + o_x, mask=m_x, other=0.0)) - b_mean
            b_grad = b_grad - b_constant - b_centred * b_slope
        tl.store(grad_x + o_x, b_grad * b_scale, mask=m_x)
        if MASKED:
            _copy(grad_x, grad_y, i_block, i_tile, tiles, rest)


def _halves(channels: int, mask: str | None, parity: int, width: int) -> tuple[Kept, Kept, bool]:
    """Where the half that is normalised and the rest lie, each of so many channels, and whether there is a rest."""
    if mask is None:
        return kept_of(channels), kept_of(channels), False
    channels *= 2 if mask == "channel" else 1
    return half_of(channels, mask, 1 - parity, width), half_of(channels, mask, parity, width), True


def batch_norm(
    y: Tensor,  # as x
    out: Tensor,  # [batch]
    mean: Tensor,  # [channels]
    var: Tensor,  # [channels]
    x: Tensor,  # [batch, channels, sites], or [batch, sites, channels] with the channels last; both halves
    log_det: Tensor,  # [batch]
    batch: int,
    channels: int,
    sites: int,
    last: bool,
    statistics: bool,
    eps: float,
    mask: str | None,
    parity: int,
    width: int,
) -> None:
    """``y = (x - mean) / sqrt(var + eps)``, ``out = log_det - sites / 2 sum(log(var + eps))``.

    mean and var are those of x if ``statistics``, which are written. With a mask this is for one half of x. The other,
    which mask and parity name, is copied; channels and sites are those of a half, and the channels are last. A
    checkerboard has rows of ``width`` sites, in all an even number.
    """
    if batch * channels * sites == 0:
        out.copy_(log_det)
        return
    tiles, apart = tiling(x, batch, channels, sites, last or sites == 1)
    half, *rest = _halves(channels, mask, parity, width)
    blocks = tiles.blocks(channels)
    parts = mean.new_empty(2, channels, tiles.programs(), dtype=torch.float64) if statistics else mean
    if statistics:
        moments[(blocks * tiles.programs(),)](parts, x, apart, half, num_warps=WARPS)
    grid = (blocks * tiles.programs() + 1,)
    others = batch, sites, blocks, tiles, half, *rest, statistics, eps, BLOCK
    _forward[grid](y, out, mean, var, x, log_det, parts, *others, num_warps=WARPS)


def batch_norm_backward(
    grad_x: Tensor,  # as x
    grad_y: Tensor,  # as x
    grad_log_det: Tensor,  # [batch]
    x: Tensor,  # [batch, channels, sites], or [batch, sites, channels] with the channels last; both halves
    mean: Tensor,  # [channels]
    var: Tensor,  # [channels]
    batch: int,
    channels: int,
    sites: int,
    last: bool,
    statistics: bool,
    eps: float,
    mask: str | None,
    parity: int,
    width: int,
) -> None:
    """The gradient of x; it flows through mean and var too if ``statistics``. The rest is as for the forward."""
    if batch * channels * sites == 0:
        return
    tiles, apart = tiling(x, batch, channels, sites, last or sites == 1)
    half, *rest = _halves(channels, mask, parity, width)
    grid = (tiles.blocks(channels) * tiles.programs(),)
    parts = mean
    if statistics:
        parts = mean.new_empty(2, channels, tiles.programs(), dtype=torch.float64)
        _sums[grid](grad_y, x, mean, var, parts, apart, half, eps, num_warps=WARPS)
    others = batch, tiles, half, *rest, statistics, eps, BLOCK
    _backward[grid](grad_x, grad_y, grad_log_det, x, mean, var, parts, *others, num_warps=WARPS)
