"""ActNorm and its inverse: one launch forward, two backward.

One program of the forward writes the few log-determinants, the others y. Backward one launch writes grad_x and sums for
parts of each channel, the other merges them. The forward reads x and writes y, the backward reads grad_y and x and
writes grad_x, so the floor is 2 and 3 times the bytes of x over the memory's bandwidth.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._channels import WARPS, merge_sums, of_block, over_rows, place, program, store_parts, tile, tiling
from pnf.kernels._common import exp, sum_of, wide
from pnf.kernels._launch import cached_launch

BLOCK = 1024
"""Log-determinants or log-scales that are taken at a time."""


@triton.jit
def _scale(log_scale, o_channel, m_channel, INVERSE: tl.constexpr):
    """What is multiplied for each channel: after the shift, or before it by the inverse."""
    b_log_scale = tl.load(log_scale + o_channel, mask=m_channel, other=0.0)
    return exp(-b_log_scale if INVERSE else b_log_scale)


@cached_launch
@triton.jit(do_not_specialize=["batch", "sites", "blocks"])
def _forward(
    y,
    out,  # [batch]
    x,
    shift,  # [channels]
    log_scale,  # [channels]
    log_det,  # [batch]
    batch,
    sites,
    blocks,
    tiles,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    if i_block < blocks:
        o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
        b_shift = tl.load(shift + o_channel, mask=m_channel, other=0.0)
        b_scale = _scale(log_scale, o_channel, m_channel, INVERSE)
        for i_tile in range(first, last):
            o_row, o_channel, o_site, m_x = tile(i_block, i_tile, tiles.channels, tiles)
            o_x = place(o_row, o_channel, o_site, tiles.channels, tiles)
            b_x = wide(tl.load(x + o_x, mask=m_x, other=0.0))
            tl.store(y + o_x, b_x * b_scale - b_shift if INVERSE else (b_x + b_shift) * b_scale, mask=m_x)
    elif i_part == 0:
        gain = sum_of(log_scale, tiles.channels, BLOCK) * sites
        for i in range(0, batch, BLOCK):
            o_out = i + tl.arange(0, BLOCK)
            b_log_det = tl.load(log_det + o_out, mask=o_out < batch, other=0.0)
            tl.store(out + o_out, b_log_det - gain if INVERSE else b_log_det + gain, mask=o_out < batch)


@cached_launch
@triton.jit
def _backward(
    grad_x,
    grad_y,
    x,
    shift,  # [channels]
    log_scale,  # [channels]
    parts,  # [2, channels, parts]
    tiles,
    INVERSE: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    b_shift = tl.load(shift + o_channel, mask=m_channel, other=0.0)
    b_scale = _scale(log_scale, o_channel, m_channel, INVERSE)
    b_sum = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_shift.dtype)
    b_product = tl.zeros([tiles.ROWS, tiles.COLUMNS], b_shift.dtype)
    for i_tile in range(first, last):
        o_row, o_channel, o_site, m_x = tile(i_block, i_tile, tiles.channels, tiles)
        o_x = place(o_row, o_channel, o_site, tiles.channels, tiles)
        b_grad = wide(tl.load(grad_y + o_x, mask=m_x, other=0.0))
        b_x = wide(tl.load(x + o_x, mask=m_x, other=0.0))
        b_sum += b_grad
        b_product += tl.where(m_x, b_grad * (b_x if INVERSE else b_x + b_shift), 0.0)
        tl.store(grad_x + o_x, b_grad * b_scale, mask=m_x)
    b_sum, b_product = over_rows(b_sum, tiles), over_rows(b_product, tiles)
    store_parts(parts, i_block, i_part, b_sum, b_product, tiles)


@cached_launch
@triton.jit(do_not_specialize=["batch", "sites"])
def _parameter_grads(
    grad_shift,  # [channels]
    grad_log_scale,  # [channels]
    grad_log_det,  # [batch]
    log_scale,  # [channels]
    parts,  # [2, channels, parts]
    batch,
    sites,
    tiles,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_channel, m_channel = of_block(tl.program_id(0), tiles.channels, tiles)
    b_scale = _scale(log_scale, o_channel, m_channel, INVERSE)
    b_sum, b_product = merge_sums(parts, o_channel, m_channel, tiles)
    b_of_log_scale = b_product * b_scale + sum_of(grad_log_det, batch, BLOCK) * sites
    tl.store(grad_shift + o_channel, -b_sum if INVERSE else b_sum * b_scale, mask=m_channel)
    tl.store(grad_log_scale + o_channel, -b_of_log_scale if INVERSE else b_of_log_scale, mask=m_channel)


def act_norm(
    y: Tensor,  # [batch, channels, sites], or [batch, sites, channels] with the channels last
    out: Tensor,  # [batch]
    x: Tensor,  # as y
    shift: Tensor,  # [channels]
    log_scale: Tensor,  # [channels]
    log_det: Tensor,  # [batch]
    batch: int,
    channels: int,
    sites: int,
    last: bool,
    inverse: bool,
) -> None:
    """``y = (x + shift) exp(log_scale)``, ``out = log_det + sites sum(log_scale)``, or what undoes that."""
    if batch * channels * sites == 0:
        out.copy_(log_det)
        return
    tiles, apart = tiling(x, batch, channels, sites, last or sites == 1)
    blocks = tiles.blocks(channels)
    grid = (blocks * tiles.programs() + 1,)
    others = batch, sites, blocks, apart, inverse, BLOCK
    _forward[grid](y, out, x, shift, log_scale, log_det, *others, num_warps=WARPS)


def act_norm_backward(
    grad_x: Tensor,  # [batch, channels, sites], or [batch, sites, channels] with the channels last
    grad_shift: Tensor,  # [channels]
    grad_log_scale: Tensor,  # [channels]
    grad_y: Tensor,  # as grad_x
    grad_log_det: Tensor,  # [batch]
    x: Tensor,  # as grad_x
    shift: Tensor,  # [channels]
    log_scale: Tensor,  # [channels]
    batch: int,
    channels: int,
    sites: int,
    last: bool,
    inverse: bool,
) -> None:
    """The gradients of :func:`act_norm` in x, shift and log_scale."""
    if batch * channels * sites == 0:
        grad_shift.zero_()
        grad_log_scale.zero_()
        return
    tiles, apart = tiling(x, batch, channels, sites, last or sites == 1)
    count = tiles.blocks(channels)
    parts = shift.new_empty(2, channels, tiles.programs(), dtype=torch.float64)
    _backward[(count * tiles.programs(),)](grad_x, grad_y, x, shift, log_scale, parts, apart, inverse, num_warps=WARPS)
    _parameter_grads[(count,)](
        grad_shift,
        grad_log_scale,
        grad_log_det,
        log_scale,
        parts,
        batch,
        sites,
        tiles,
        inverse,
        BLOCK,
    )
