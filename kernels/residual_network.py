"""What lies between the convolutions of a residual network in training, with the channels last.

The hidden states ``h_0, h_1, ...`` are slices of one tensor ``[rows, of]``, so that all skip connections are one matrix
product. :func:`residual_network_training` is two launches: the first adds a convolution's bias and the state before it
to what the convolution returned, and takes the moments of parts of each channel; the second merges them, normalises and
applies ReLU. It reads z and two states, and writes a state and y: the floor is 5 times the bytes of z over the memory's
bandwidth. Where a channel has few entries one launch does both. It reads z and the state before it again, not what
other threads wrote: 6 times the bytes. The backward is that of batch normalisation, which adds the gradients from the
next state and from the skip connection: 7 times the bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._channels import (
    WARPS,
    deviations,
    first_mean,
    of_block,
    own_statistics,
    place,
    program,
    shifted_moments,
    store_parts,
    tile,
    tiling,
)
from pnf.kernels._common import wide
from pnf.kernels._launch import cached_launch
from pnf.kernels.batch_norm_relu import affine, batch_norm_relu_backward, normalise


@triton.jit
def _tile_of_state(h, z, before, b_bias, of, i_block, i_tile, tiles, added):
    """A tile of a state with zeros where nothing exists, what exists, and where it lies in z and h."""
    o_row, o_channel, o_site, m_z = tile(i_block, i_tile, tiles.channels, tiles)
    o_z = place(o_row, o_channel, o_site, tiles.channels, tiles)
    o_h = place(o_row, o_channel, o_site, of, tiles)
    b_h = wide(tl.load(z + o_z, mask=m_z, other=0.0)) + b_bias
    b_h += wide(tl.load(before + o_h, mask=m_z & (added != 0), other=0.0))
    return tl.where(m_z, wide(b_h.to(h.dtype.element_ty)), 0.0), m_z, o_z, o_h


@cached_launch
@triton.jit(do_not_specialize=["added"])
def _state(
    h,  # a slice of [rows, of]
    y,  # [rows, channels]
    mean,  # [channels]
    var,  # [channels]
    parts,  # [2, channels, parts]
    z,  # [rows, channels]
    bias,  # [channels]
    before,  # as h
    gain,  # [channels]
    offset,  # [channels]
    of,
    added,
    tiles,
    NORMED: tl.constexpr,  # by the program itself, which takes all tiles of its block
    EPS: tl.constexpr,
):
    i_block, i_part, first, last = program(tiles)
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    b_bias = wide(tl.load(bias + o_channel, mask=m_channel, other=0.0))
    b_h, m_h, _, o_h = _tile_of_state(h, z, before, b_bias, of, i_block, first, tiles, added)
    tl.store(h + o_h, b_h, mask=m_h)
    b_shift = first_mean(b_h, m_h, tiles)
    b_sum, b_squares = deviations(b_h, b_shift, m_h)
    for i_tile in range(first + 1, last):
        b_h, m_h, _, o_h = _tile_of_state(h, z, before, b_bias, of, i_block, i_tile, tiles, added)
        tl.store(h + o_h, b_h, mask=m_h)
        b_more = deviations(b_h, b_shift, m_h)
        b_sum += b_more[0]
        b_squares += b_more[1]
    b_mean, b_squares = shifted_moments(first, last, b_shift, b_sum, b_squares, tiles)
    if NORMED:
        b_mean, b_reciprocal = own_statistics(mean, var, b_mean, b_squares, o_channel, m_channel, tiles, EPS)
        b_scale, b_offset = affine(gain, offset, b_reciprocal, o_channel, m_channel)
        for i_tile in range(first, last):
            # Other threads may have written h. To compute it again needs no barrier.
            b_h, m_h, o_y, _ = _tile_of_state(h, z, before, b_bias, of, i_block, i_tile, tiles, added)
            b_y = (b_h - b_mean) * b_scale + b_offset
            tl.store(y + o_y, tl.where(b_y < 0, 0.0, b_y), mask=m_h)
    else:
        store_parts(parts, i_block, i_part, b_mean, b_squares, tiles)


def residual_network_training(
    h: Tensor,  # a slice of [batch, sites, of]
    y: Tensor,  # [batch, sites, channels]
    mean: Tensor,  # [channels]
    var: Tensor,  # [channels]
    z: Tensor,  # as y
    bias: Tensor,  # [channels]
    before: Tensor,  # as h
    gain: Tensor,  # [channels]
    offset: Tensor,  # [channels]
    batch: int,
    channels: int,
    sites: int,
    of: int,
    added: bool,
    normed: bool,
    eps: float,
) -> None:
    """``h = z + bias``, and ``+ before`` if ``added``; if ``normed``, ``y = relu(norm(h))`` by the moments of h."""
    tiles, apart = tiling(z, batch, channels, sites, True, alone=normed)
    grid = (tiles.blocks(channels) * tiles.programs(),)
    alone = normed and tiles.programs() == 1
    parts = mean if alone else mean.new_empty(2, channels, tiles.programs(), dtype=torch.float64)
    others = of, int(added), apart, alone, eps
    _state[grid](h, y, mean, var, parts, z, bias, before, gain, offset, *others, num_warps=WARPS)
    if normed and not alone:
        normalise(y, mean, var, h, gain, offset, parts, of, tiles, True, eps)


def residual_network_training_backward(
    grad_h: Tensor,  # [batch, sites, channels]
    grad_gain: Tensor,  # [channels]
    grad_offset: Tensor,  # [channels]
    grad_y: Tensor,  # as grad_h
    h: Tensor,  # a slice of [batch, sites, of]
    gain: Tensor,  # [channels]
    offset: Tensor,  # [channels]
    mean: Tensor,  # [channels]
    var: Tensor,  # [channels]
    grad_next: Tensor,  # as grad_h
    grad_skip: Tensor,  # a slice of [batch, sites, of_skips]
    batch: int,
    channels: int,
    sites: int,
    of: int,
    of_skips: int,
    eps: float,
) -> None:
    """The gradient of a state, from those of its normalisation, of the next state and of its skip connection."""
    others = batch, channels, sites, True, True, eps, of, (grad_next, grad_skip, of_skips)
    batch_norm_relu_backward(grad_h, grad_gain, grad_offset, grad_y, h, gain, offset, mean, var, *others)
