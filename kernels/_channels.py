"""Tiles and reductions for the ops that normalise channels.

A contiguous tensor is ``[rows, channels, sites]``, its rows the examples, and a tile is some sites of some rows of one
channel. With the channels last it is ``[rows, channels]``, its rows the sites of all examples, and a tile is some rows
of some channels. A program takes ``loops`` tiles after one another, and the tiles of a block of channels are shared out
among ``parts`` programs: program ``block * parts + part``. What they find is merged in order, in float64, by each
program that needs it; it depends on sizes only, so that results repeat bit for bit.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import wide

TILE = 4096
WARPS = 8


class Tiling(NamedTuple):
    """How a tensor is cut; a kernel takes all of it."""

    rows: int
    sites: int
    across: int  # tiles beside one another
    tiles: int  # of a block of channels
    loops: int
    parts: int
    LAST: bool
    ROWS: int
    COLUMNS: int

    def blocks(self, channels: int) -> int:
        """Blocks of channels."""
        return triton.cdiv(channels, self.COLUMNS) if self.LAST else channels


def tiling(x: Tensor, batch: int, channels: int, sites: int, last: bool) -> Tiling:
    """The tiles of so many channels of x, ``[batch, ..., sites]`` or ``[batch, sites, ...]``."""
    rows = batch * sites if last else batch
    columns = min(triton.next_power_of_2(channels), 32) if last else min(triton.next_power_of_2(sites), 1024)
    # With the channels last an access of a thread may be as narrow as an entry, and its addresses fill the registers.
    height = min(triton.next_power_of_2(rows), (TILE // 2 if last else TILE) // columns)
    across = 1 if last else triton.cdiv(sites, columns)
    tiles = triton.cdiv(rows, height) * across
    # Every program of a block reads 16 bytes from all of them, and no more than a twentieth of what three passes over
    # x move.
    most = math.isqrt(batch * sites * x.element_size() * 3 // (20 * 16))
    loops = triton.cdiv(tiles, min(max(most, 1), 64))
    return Tiling(rows, sites, across, tiles, loops, triton.cdiv(tiles, loops), last, height, columns)


@triton.jit
def tile(i_block, i_tile, rows, channels, sites, across, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows, channels and sites of a tile, and which of them exist; they broadcast to [ROWS, COLUMNS]."""
    o_row = (i_tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_channel, m_tile = of_block(i_block, channels, LAST, COLUMNS)
    if LAST:
        o_site = (o_row % sites).to(tl.int32)
    else:
        o_site = i_tile % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        m_tile = o_site < sites
    return o_row, o_channel, o_site, (o_row < rows) & m_tile


@triton.jit
def of_block(i_block, channels, LAST: tl.constexpr, COLUMNS: tl.constexpr):
    """The channels of a block, and which of them exist: [1, COLUMNS] or [1, 1]."""
    o_channel = i_block + tl.zeros([1, 1], tl.int32)
    if LAST:
        o_channel = o_channel * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return o_channel, o_channel < channels


@triton.jit
def place(o_row, o_channel, o_site, channels, sites, LAST: tl.constexpr):
    """Offsets in a tensor of so many channels."""
    o_x = o_row * channels + o_channel
    if not LAST:
        o_x = o_x * sites + o_site
    return o_x


@triton.jit
def kept(o_site, width, parity):
    """Whether a checkerboard keeps a site."""
    return (o_site // width + o_site % width) % 2 == parity


@triton.jit
def load_kept(x, o_x, o_site, m_x, width, parity, LAST: tl.constexpr, BOARD: tl.constexpr):
    """The entries that a board keeps, and zeros for the others."""
    if BOARD and LAST:
        b_x = wide(tl.load(x + o_x, mask=m_x & kept(o_site, width, parity), other=0.0))
    elif BOARD:
        # Neighbours share their bytes with those that are kept, and 16 of them are read at once without a mask.
        b_x = wide(tl.load(x + o_x, mask=m_x, other=0.0))
        b_x = tl.where(kept(o_site, width, parity), b_x, 0.0)
    else:
        b_x = wide(tl.load(x + o_x, mask=m_x, other=0.0))
    return b_x


@triton.jit
def over_rows(b_x, LAST: tl.constexpr):
    """The sum for each channel of a block."""
    b_sum = tl.sum(b_x, 0, keep_dims=True)
    if not LAST:
        b_sum = tl.sum(b_sum, 1, keep_dims=True)
    return b_sum


@triton.jit
def entries_before(i_tile, rows, sites, across, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Entries of a channel in the tiles before one, in float64."""
    o_tile = tl.zeros([1, 1], tl.int64) + i_tile
    o_row = o_tile // across * ROWS
    entries = tl.minimum(o_row, rows)
    if not LAST:
        height = tl.minimum(o_row + ROWS, rows) - entries
        entries = entries * sites + height * tl.minimum(o_tile % across * COLUMNS, sites)
    return entries.to(tl.float64)


@triton.jit
def part_offsets(o_channel, o_part, channels, n_parts, LAST: tl.constexpr):
    """Where the parts of channels lie in [channels, n_parts], or in [n_parts, channels] with the channels last."""
    return o_part * channels + o_channel if LAST else o_channel * n_parts + o_part


@triton.jit
def store_parts(
    parts, i_block, i_part, b_first, b_second, channels, n_parts, LAST: tl.constexpr, COLUMNS: tl.constexpr
):  # [2, channels, n_parts]
    """Write what a program found for each channel of its block."""
    o_channel, m_channel = of_block(i_block, channels, LAST, COLUMNS)
    o_parts = part_offsets(o_channel, i_part, channels, n_parts, LAST)
    tl.store(parts + o_parts, b_first, mask=m_channel)
    tl.store(parts + channels * n_parts + o_parts, b_second, mask=m_channel)


@triton.jit
def load_parts(parts, o_channel, m_channel, channels, n_parts, LAST: tl.constexpr, PARTS: tl.constexpr):
    """What all programs of a block found: two of [PARTS, channels of the block]."""
    o_part = tl.arange(0, PARTS)[:, None]
    o_parts = part_offsets(o_channel, o_part, channels, n_parts, LAST)
    m_parts = m_channel & (o_part < n_parts)
    b_first = tl.load(parts + o_parts, mask=m_parts, other=0.0)
    return b_first, tl.load(parts + channels * n_parts + o_parts, mask=m_parts, other=0.0)


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
    PARTS: tl.constexpr,
):
    """Mean and biased variance of each channel, from the mean and the squared deviations of every part."""
    b_means, b_squares = load_parts(parts, o_channel, m_channel, channels, n_parts, LAST, PARTS)
    o_first = tl.minimum(tl.arange(0, PARTS)[:, None] * loops, tiles)
    b_count = entries_before(tl.minimum(o_first + loops, tiles), rows, sites, across, LAST, ROWS, COLUMNS)
    b_count -= entries_before(o_first, rows, sites, across, LAST, ROWS, COLUMNS)
    entries = entries_before(tiles, rows, sites, across, LAST, ROWS, COLUMNS)
    b_mean = tl.sum(b_count * b_means, 0, keep_dims=True) / entries
    b_distance = b_means - b_mean
    return b_mean, tl.sum(b_squares + b_count * b_distance * b_distance, 0, keep_dims=True) / entries


@triton.jit
def moments(
    parts,  # [2, channels, n_parts], float64
    x,
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
):
    """Mean and sum of squared deviations of the parts of channels [start, start + channels) of x.

    Under a board the sites that are not kept count as zeros. Distances are taken from the mean of the first tile, which
    is near enough for float32.
    """
    i_block, i_part = tl.program_id(0) // n_parts, tl.program_id(0) % n_parts
    first, last = i_part * loops, tl.minimum(i_part * loops + loops, tiles)
    o_row, o_channel, o_site, m_x = tile(i_block, first, rows, channels, sites, across, LAST, ROWS, COLUMNS)
    o_x = place(o_row, start + o_channel, o_site, x_channels, sites, LAST)
    b_x = load_kept(x, o_x, o_site, m_x, width, parity, LAST, BOARD)
    b_shift = over_rows(b_x, LAST) / tl.maximum(over_rows(m_x.to(b_x.dtype), LAST), 1.0)
    b_sum = tl.where(m_x, b_x - b_shift, 0.0)
    b_squares = b_sum * b_sum
    for i_tile in range(first + 1, last):
        o_row, o_channel, o_site, m_x = tile(i_block, i_tile, rows, channels, sites, across, LAST, ROWS, COLUMNS)
        o_x = place(o_row, start + o_channel, o_site, x_channels, sites, LAST)
        b_x = load_kept(x, o_x, o_site, m_x, width, parity, LAST, BOARD)
        b_distance = tl.where(m_x, b_x - b_shift, 0.0)
        b_sum += b_distance
        b_squares += b_distance * b_distance
    count = entries_before(last, rows, sites, across, LAST, ROWS, COLUMNS)
    count -= entries_before(first, rows, sites, across, LAST, ROWS, COLUMNS)
    b_total = over_rows(b_sum, LAST).to(tl.float64)
    b_deviations = over_rows(b_squares, LAST).to(tl.float64) - b_total * b_total / count
    b_deviations = tl.where(b_deviations < 0, 0.0, b_deviations)  # not the maximum, which would lose NaN
    store_parts(parts, i_block, i_part, b_shift + b_total / count, b_deviations, channels, n_parts, LAST, COLUMNS)
