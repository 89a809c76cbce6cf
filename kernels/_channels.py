"""Tiles and reductions for the ops that normalise channels.

A contiguous tensor is ``[rows, channels, sites]``, its rows the examples, and a tile is some sites of some rows of one
channel. With the channels last it is ``[rows, channels]``, its rows the sites of all examples, and a tile is some rows
of some channels. A program takes ``loops`` tiles after one another, and a channel's tiles are shared out among
``parts`` programs; their partial sums depend on sizes only and are added in order, so that results repeat bit for bit.

A program is given by its index ``(block of channels) * parts + part``. Statistics are merged in float64.
"""

from typing import NamedTuple

import triton
import triton.language as tl

TILE = 4096
WARPS = 8
MOST_PARTS = 64


class Tiling(NamedTuple):
    """How a tensor is cut; the arguments of a kernel that describe it, and the number of blocks of channels."""

    rows: int
    sites: int
    across: int
    tiles: int
    loops: int
    parts: int
    LAST: bool
    ROWS: int
    COLUMNS: int


def tiling(batch: int, channels: int, sites: int, last: bool) -> Tiling:
    """The tiles of ``[batch, channels, sites]``, or of ``[batch, sites, channels]``."""
    rows = batch * sites if last else batch
    columns = min(triton.next_power_of_2(channels), 32) if last else min(triton.next_power_of_2(sites), 1024)
    height = min(triton.next_power_of_2(rows), TILE // columns)
    across = 1 if last else triton.cdiv(sites, columns)
    tiles = triton.cdiv(rows, height) * across
    loops = triton.cdiv(tiles, MOST_PARTS)
    return Tiling(rows, sites, across, tiles, loops, triton.cdiv(tiles, loops), last, height, columns)


def blocks(tiles: Tiling, channels: int) -> int:
    """Blocks of channels that a tile may lie in."""
    return triton.cdiv(channels, tiles.COLUMNS) if tiles.LAST else channels


@triton.jit
def tile(i_block, i_tile, rows, channels, sites, across, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows, channels and sites of a tile, and which of them exist; they broadcast to [ROWS, COLUMNS]."""
    o_row = (i_tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    if LAST:
        o_channel = i_block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        return o_row, o_channel, (o_row % sites).to(tl.int32), (o_row < rows) & (o_channel < channels)
    else:
        o_channel = i_block + tl.zeros([1, 1], tl.int32)
        o_site = i_tile % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        return o_row, o_channel, o_site, (o_row < rows) & (o_site < sites)


@triton.jit
def place(o_row, o_channel, o_site, channels, sites, LAST: tl.constexpr):
    """Offsets in a tensor of so many channels."""
    if LAST:
        return o_row * channels + o_channel
    else:
        return (o_row * channels + o_channel) * sites + o_site


@triton.jit
def of_channel(i_block, channels, LAST: tl.constexpr, COLUMNS: tl.constexpr):
    """The channels of a block, and which of them exist: [1, COLUMNS] or [1, 1]."""
    if LAST:
        o_channel = i_block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    else:
        o_channel = i_block + tl.zeros([1, 1], tl.int32)
    return o_channel, o_channel < channels


@triton.jit
def over_rows(b_x, LAST: tl.constexpr):
    """The sum for each channel."""
    if LAST:
        return tl.sum(b_x, 0, keep_dims=True)
    else:
        return tl.sum(tl.sum(b_x, 0, keep_dims=True), 1, keep_dims=True)


@triton.jit
def entries_before(i_tile, rows, sites, across, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Entries of a channel in the tiles before one, in float64."""
    o_tile = tl.zeros([1, 1], tl.int64) + i_tile
    o_row = o_tile // across * ROWS
    whole = tl.minimum(o_row, rows)
    if LAST:
        return whole.to(tl.float64)
    else:
        left = tl.minimum(o_row + ROWS, rows) - whole
        return (whole * sites + left * tl.minimum(o_tile % across * COLUMNS, sites)).to(tl.float64)


@triton.jit
def part_offsets(o_channel, o_part, channels, parts, LAST: tl.constexpr):
    """Where the parts of channels lie in [channels, parts], or in [parts, channels] with the channels last."""
    if LAST:
        return o_part * channels + o_channel
    else:
        return o_channel * parts + o_part


@triton.jit
def deviations(b_sum, b_squares, count):
    """The sum of squared deviations from the mean, given sums of distances from elsewhere and of their squares."""
    b_deviations = b_squares.to(tl.float64) - b_sum * b_sum / count
    return tl.where(b_deviations < 0, 0.0, b_deviations)  # not the maximum, which would lose NaN


@triton.jit
def store_parts(parts, i_block, i_part, b_first, b_second, channels, n_parts, LAST: tl.constexpr, COLUMNS: tl.constexpr):
    """Write what one part of each channel in a block adds."""
    o_channel, m_channel = of_channel(i_block, channels, LAST, COLUMNS)
    o_parts = part_offsets(o_channel, i_part, channels, n_parts, LAST)
    tl.store(parts + o_parts, b_first, mask=m_channel)
    tl.store(parts + channels * n_parts + o_parts, b_second, mask=m_channel)


@triton.jit
def load_parts(
    parts, o_channel, m_channel, channels, n_parts, LAST: tl.constexpr, PARTS: tl.constexpr
):  # [2, channels, n_parts] -> two of [PARTS, channels of a block] in float64
    o_part = tl.arange(0, PARTS)[:, None]
    o_parts = part_offsets(o_channel, o_part, channels, n_parts, LAST)
    m_parts = m_channel & (o_part < n_parts)
    b_first = tl.load(parts + o_parts, mask=m_parts, other=0.0).to(tl.float64)
    return b_first, tl.load(parts + channels * n_parts + o_parts, mask=m_parts, other=0.0).to(tl.float64)


@triton.jit
def merge_sums(parts, o_channel, m_channel, channels, n_parts, LAST: tl.constexpr, PARTS: tl.constexpr):
    """The two sums of each channel."""
    b_first, b_second = load_parts(parts, o_channel, m_channel, channels, n_parts, LAST, PARTS)
    return tl.sum(b_first, 0, keep_dims=True), tl.sum(b_second, 0, keep_dims=True)


@triton.jit
def merge_moments(
    parts,
    o_channel,
    m_channel,
    rows,
    channels,
    sites,
    across,
    tiles,
    loops,
    n_parts,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Mean and biased variance of each channel from the means and squared deviations of its parts."""
    b_means, b_squares = load_parts(parts, o_channel, m_channel, channels, n_parts, LAST, PARTS)
    o_first = tl.minimum(tl.arange(0, PARTS)[:, None] * loops, tiles)
    o_last = tl.minimum(o_first + loops, tiles)
    b_count = entries_before(o_last, rows, sites, across, LAST, ROWS, COLUMNS)
    b_count -= entries_before(o_first, rows, sites, across, LAST, ROWS, COLUMNS)
    total = entries_before(tiles, rows, sites, across, LAST, ROWS, COLUMNS)
    b_mean = tl.sum(b_count * b_means, 0, keep_dims=True) / total
    b_distance = b_means - b_mean
    return b_mean, tl.sum(b_squares + b_count * b_distance * b_distance, 0, keep_dims=True) / total
