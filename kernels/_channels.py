"""Tiles and reductions for the ops that normalise channels.

A contiguous tensor is ``[rows, channels, sites]``, its rows the examples, and a tile is some sites of some rows of one
channel. With the channels last it is ``[rows, channels]``, its rows the sites of all examples, and a tile is some rows
of some channels. A program takes ``loops`` tiles after one another, and the tiles of a block of channels are shared out
among ``parts`` programs: program ``block * parts + part``. What they find is merged in order, in float64, by each
program that needs it; it depends on sizes only, so that results repeat bit for bit.

Where a channel has few entries, one program may take all tiles of its block, which has fewer channels then. It needs
nothing of others, so that one launch does what takes two.
"""

import functools
import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import divide, on_board, plain, sqrt, value, wide
from pnf.kernels._launch import REMEMBERED, cached_launch

TILE = 4096
WARPS = 8

ALONE = 2048
"""Entries of a channel that one program takes. To read them all should last no longer than another launch."""

SECTOR = 32
"""Bytes that memory moves at least."""


FEW, MOST = tl.constexpr(16), tl.constexpr(64)
"""Programs that share the tiles of a block, at most. What they find is merged by code for one of these numbers."""


class Tiling(NamedTuple):
    """How a tensor is cut. A kernel takes it as one argument, ``tiles``.

    Its integers are :func:`plain`, so that few kernels are compiled. Channels, and sites unless the channels are last,
    are as they are, since accesses are wide where rows of memory are multiples of 16 bytes.
    """

    channels: int
    sites: int
    rows: int
    across: int  # tiles beside one another
    total: int  # of a block of channels
    loops: int
    parts: int
    LAST: tl.constexpr
    ROWS: tl.constexpr
    COLUMNS: tl.constexpr
    PARTS: tl.constexpr  # at least parts, a power of two

    def blocks(self, channels: int) -> int:
        """The blocks of this number of channels."""
        return triton.cdiv(channels, self.COLUMNS.value) if self.LAST.value else channels

    def programs(self) -> int:
        """Programs that share the tiles of a block."""
        return self.parts // 2 - 1


def tiling(x: Tensor, batch: int, channels: int, sites: int, last: bool, alone: bool = False) -> tuple[Tiling, Tiling]:
    """The tiles of a number of channels of x, ``[batch, ..., sites]`` or ``[batch, sites, ...]``.

    The second result is for kernels that merge no parts, whose code is the same for every number of them.

    With ``alone`` one program takes all tiles of a block where a channel has few entries. Otherwise there are many
    parts more often than not, and code for few of them would be one more kernel to compile.
    """
    return _tiling(x.element_size(), batch, channels, sites, last, alone)


@functools.lru_cache(REMEMBERED)
def _tiling(size: int, batch: int, channels: int, sites: int, last: bool, alone: bool) -> tuple[Tiling, Tiling]:
    rows = batch * sites if last else batch
    few, alone = not alone, alone and batch * sites <= ALONE
    if last:
        # More channels in a block would leave fewer programs, and each would merge more.
        sector = SECTOR // size
        widest = sector if alone or channels % sector == 0 else 32
        columns = next((width for width in (4, 8, 16) if min(channels, widest) <= width), 32)
    else:
        columns = min(triton.next_power_of_2(sites), 1024)
    # With the channels last an access of a thread may be as narrow as an entry, and its addresses fill the registers.
    height = (TILE // 2 if last and not alone else TILE) // columns
    if rows <= height // 8:
        height //= 8
    across = 1 if last else triton.cdiv(sites, columns)
    total = triton.cdiv(rows, height) * across
    # Every program of a block reads 16 bytes from all of them, and no more than a twentieth of what three passes over
    # x move.
    most = math.isqrt(batch * sites * size * 3 // (20 * 16))
    loops = total if alone else triton.cdiv(total, min(max(most, 1), MOST.value))
    parts = triton.cdiv(total, loops)
    tiles = Tiling(
        channels=channels,
        sites=plain(sites) if last else sites,
        rows=plain(rows),
        across=plain(across),
        total=plain(total),
        loops=plain(loops),
        parts=plain(parts),
        LAST=tl.constexpr(last),
        ROWS=tl.constexpr(height),
        COLUMNS=tl.constexpr(columns),
        PARTS=FEW if few and parts <= FEW.value else MOST,
    )
    return tiles, tiles._replace(PARTS=FEW)


class Kept(NamedTuple):
    """The entries of x that take part: some channels, and of them those on one half of a checkerboard if BOARD.

    With HALF the tiles are of one of two equal halves, of the channels or of a checkerboard, by the same code, and the
    channels are last.
    A kernel takes it as one argument, ``kept``.
    """

    channels: int  # of x; plain with HALF
    start: int  # the first of them, plain
    width: int  # plain
    parity: int  # plain
    step: int  # sites of x for each of the tiles, plain
    BOARD: tl.constexpr
    HALF: tl.constexpr


@functools.lru_cache(REMEMBERED)
def kept_of(channels: int, start: int = 0, width: int = 1, parity: int = 0, board: bool = False) -> Kept:
    """The entries of x that take part; by default all."""
    return Kept(channels, plain(start), plain(width), plain(parity), plain(1), tl.constexpr(board), tl.constexpr(False))


@functools.lru_cache(REMEMBERED)
def half_of(channels: int, mask: str, parity: int, width: int) -> Kept:
    """The half that a mask keeps of x, whose checkerboard has an even number of sites, in rows of some width."""
    board = mask == "checkerboard"
    start, width, parity, step = (0, width, parity, 2) if board else (parity * (channels // 2), 1, 0, 1)
    places = plain(channels), plain(start), plain(width), plain(parity), plain(step)
    return Kept(*places, tl.constexpr(False), tl.constexpr(True))


@triton.jit
def program(tiles):
    """The block and the part of a program, and the first of its tiles and the one after its last."""
    parts, loops = value(tiles.parts), value(tiles.loops)
    i_block, i_part = tl.program_id(0) // parts, tl.program_id(0) % parts
    return i_block, i_part, i_part * loops, tl.minimum(i_part * loops + loops, value(tiles.total))


@triton.jit
def tile(i_block, i_tile, channels, tiles):
    """Rows, channels and sites of a tile, and which of them exist; they broadcast to [ROWS, COLUMNS]."""
    across = value(tiles.across)
    i_row = i_tile // across
    o_row = i_row.to(tl.int64) * tiles.ROWS + tl.arange(0, tiles.ROWS)[:, None]
    o_channel, m_tile = of_block(i_block, channels, tiles)
    if tiles.LAST:
        o_site = (o_row % value(tiles.sites)).to(tl.int32)
    else:
        o_site = (i_tile - i_row * across) * tiles.COLUMNS + tl.arange(0, tiles.COLUMNS)[None, :]
        m_tile = o_site < tiles.sites
    return o_row, o_channel, o_site, (o_row < value(tiles.rows)) & m_tile


@triton.jit
def of_block(i_block, channels, tiles):
    """The channels of a block, and which of them exist: [1, COLUMNS] or [1, 1]."""
    o_channel = i_block + tl.zeros([1, 1], tl.int32)
    if tiles.LAST:
        o_channel = o_channel * tiles.COLUMNS + tl.arange(0, tiles.COLUMNS)[None, :]
    return o_channel, o_channel < channels


@triton.jit
def place(o_row, o_channel, o_site, channels, tiles):
    """Offsets in a tensor of this number of channels."""
    o_x = o_row * channels + o_channel
    if not tiles.LAST:
        o_x = o_x * tiles.sites + o_site
    return o_x


@triton.jit
def tile_of_x(i_block, i_tile, tiles, kept):
    """The rows, channels and sites of a tile of what is kept of x, which of them exist, and where they lie in x."""
    o_row, o_channel, o_site, m_x = tile(i_block, i_tile, tiles.channels, tiles)
    o_kept = value(kept.start) + o_channel
    if kept.HALF:
        # Of each two neighbours on a board one takes part. Where rows are even, it changes from row to row.
        width, step = value(kept.width), value(kept.step)
        o_second = (step * o_site // width * (1 - width % 2) + value(kept.parity)) % 2
        o_x = (o_row * step + o_second) * value(kept.channels) + o_kept
    else:
        o_x = place(o_row, o_kept, o_site, kept.channels, tiles)
    return o_row, o_channel, o_site, m_x, o_x


@triton.jit
def on_kept(o_site, kept):
    """Whether a checkerboard keeps a site."""
    return on_board(o_site, value(kept.width), value(kept.parity))


@triton.jit
def load_kept(x, o_x, o_site, m_x, tiles, kept):
    """The entries that a board keeps, and zeros for the others."""
    if kept.BOARD and tiles.LAST:
        b_x = wide(tl.load(x + o_x, mask=m_x & on_kept(o_site, kept), other=0.0))
    elif kept.BOARD:
        # Neighbours share their bytes with those that are kept, and 16 of them are read at once without a mask.
        b_x = wide(tl.load(x + o_x, mask=m_x, other=0.0))
        b_x = tl.where(on_kept(o_site, kept), b_x, 0.0)
    else:
        b_x = wide(tl.load(x + o_x, mask=m_x, other=0.0))
    return b_x


@triton.jit
def over_rows(b_x, tiles):
    """The sum for each channel of a block."""
    b_sum = tl.sum(b_x, 0, keep_dims=True)
    if not tiles.LAST:
        b_sum = tl.sum(b_sum, 1, keep_dims=True)
    return b_sum


@triton.jit
def entries_before(i_tile, tiles):
    """Entries of a channel in the tiles before one, in float64."""
    o_tile = tl.zeros([1, 1], tl.int64) + i_tile
    across, rows = value(tiles.across), value(tiles.rows)
    o_row = o_tile // across * tiles.ROWS
    entries = tl.minimum(o_row, rows)
    if not tiles.LAST:
        height = tl.minimum(o_row + tiles.ROWS, rows) - entries
        entries = entries * tiles.sites + height * tl.minimum(o_tile % across * tiles.COLUMNS, tiles.sites)
    return entries.to(tl.float64)


@triton.jit
def part_offsets(o_channel, o_part, tiles):
    """Where the parts of channels lie in [channels, parts], or in [parts, channels] with the channels last."""
    return o_part * tiles.channels + o_channel if tiles.LAST else o_channel * value(tiles.parts) + o_part


@triton.jit
def store_parts(parts, i_block, i_part, b_first, b_second, tiles):  # parts: [2, channels, parts]
    """Write what a program found for each channel of its block."""
    o_channel, m_channel = of_block(i_block, tiles.channels, tiles)
    o_parts = part_offsets(o_channel, i_part, tiles)
    tl.store(parts + o_parts, b_first, mask=m_channel)
    tl.store(parts + tiles.channels * value(tiles.parts) + o_parts, b_second, mask=m_channel)


@triton.jit
def load_parts(parts, o_channel, m_channel, o_part, tiles):
    """What some programs of a block found: two of [programs, channels of the block]."""
    o_parts = part_offsets(o_channel, o_part, tiles)
    m_parts = m_channel & (o_part < value(tiles.parts))
    b_first = tl.load(parts + o_parts, mask=m_parts, other=0.0)
    return b_first, tl.load(parts + tiles.channels * value(tiles.parts) + o_parts, mask=m_parts, other=0.0)


@triton.jit
def merge_sums(parts, o_channel, m_channel, tiles):
    """The two sums of each channel.

    They are of a few parts at a time, which one warp holds. Across warps the kernels would take more registers.
    """
    o_part = tl.arange(0, FEW)[:, None]
    b_first, b_second = load_parts(parts, o_channel, m_channel, o_part, tiles)
    for i in tl.static_range(1, tiles.PARTS // FEW):
        b_more = load_parts(parts, o_channel, m_channel, i * FEW + o_part, tiles)
        b_first += b_more[0]
        b_second += b_more[1]
    return tl.sum(b_first, 0, keep_dims=True), tl.sum(b_second, 0, keep_dims=True)


@triton.jit
def merge_moments(parts, o_channel, m_channel, tiles):
    """Mean and biased variance of each channel, from the mean and the squared deviations of every part."""
    o_part = tl.arange(0, tiles.PARTS)[:, None]
    b_means, b_squares = load_parts(parts, o_channel, m_channel, o_part, tiles)
    loops, total = value(tiles.loops), value(tiles.total)
    o_first = tl.minimum(o_part * loops, total)
    b_count = entries_before(tl.minimum(o_first + loops, total), tiles)
    b_count -= entries_before(o_first, tiles)
    entries = entries_before(total, tiles)
    share = 1.0 / entries  # the same in a loop, as each division is a call that saves registers
    b_mean = tl.sum(b_count * b_means, 0, keep_dims=True) / entries
    b_distance = b_means - b_mean
    return b_mean, tl.sum(b_squares + b_count * b_distance * b_distance, 0, keep_dims=True) * share


@cached_launch
@triton.jit
def moments(
    parts,  # [2, channels, parts], float64
    x,
    tiles,
    kept,
):
    """Mean and sum of squared deviations of the parts of what is kept of x."""
    i_block, i_part, first, last = program(tiles)
    b_mean, b_squares = moments_of_part(x, i_block, first, last, tiles, kept)
    store_parts(parts, i_block, i_part, b_mean, b_squares, tiles)


@triton.jit
def moments_of_part(x, i_block, first, last, tiles, kept):
    """Mean and sum of squared deviations of some tiles of what is kept of x, in float64.

    Sites that a board does not keep count as zeros. Distances are taken from the mean of the first tile, which is near
    enough for float32.
    """
    _, _, o_site, m_x, o_x = tile_of_x(i_block, first, tiles, kept)
    b_x = load_kept(x, o_x, o_site, m_x, tiles, kept)
    b_shift = first_mean(b_x, m_x, tiles)
    b_sum, b_squares = deviations(b_x, b_shift, m_x)
    for i_tile in range(first + 1, last):
        _, _, o_site, m_x, o_x = tile_of_x(i_block, i_tile, tiles, kept)
        b_more = deviations(load_kept(x, o_x, o_site, m_x, tiles, kept), b_shift, m_x)
        b_sum += b_more[0]
        b_squares += b_more[1]
    return shifted_moments(first, last, b_shift, b_sum, b_squares, tiles)


@triton.jit
def first_mean(b_x, m_x, tiles):  # b_x: zeros where m_x is not
    """The mean of each channel in the first tile of a part."""
    return divide(over_rows(b_x, tiles), tl.maximum(over_rows(m_x.to(b_x.dtype), tiles), 1.0))


@triton.jit
def deviations(b_x, b_shift, m_x):
    """The distances of a tile's entries from the mean of the first tile, and their squares."""
    b_distance = tl.where(m_x, b_x - b_shift, 0.0)
    return b_distance, b_distance * b_distance


@triton.jit
def shifted_moments(first, last, b_shift, b_sum, b_squares, tiles):
    """Mean and sum of squared deviations of a part, from the sums of :func:`deviations`, in float64."""
    count = entries_before(last, tiles) - entries_before(first, tiles)
    b_total = over_rows(b_sum, tiles).to(tl.float64)
    b_deviations = over_rows(b_squares, tiles).to(tl.float64) - b_total * b_total / count
    b_deviations = tl.where(b_deviations < 0, 0.0, b_deviations)  # not the maximum, which would lose NaN
    return b_shift + b_total / count, b_deviations


@triton.jit
def batch_statistics(mean, var, parts, i_part, o_channel, m_channel, tiles, EPS: tl.constexpr):  # mean, var: [channels]
    """Mean and reciprocal standard deviation of each channel, from its moments, which the first part writes."""
    b_mean, b_var = merge_moments(parts, o_channel, m_channel, tiles)
    return store_statistics(mean, var, b_mean, b_var, o_channel, m_channel & (i_part == 0), EPS)


@triton.jit
def own_statistics(mean, var, b_mean, b_squares, o_channel, m_channel, tiles, EPS: tl.constexpr):
    """The same from the mean and the squared deviations that a program found of all entries."""
    b_var = b_squares / entries_before(value(tiles.total), tiles)
    return store_statistics(mean, var, b_mean, b_var, o_channel, m_channel, EPS)


@triton.jit
def store_statistics(mean, var, b_mean, b_var, o_channel, m_channel, EPS: tl.constexpr):
    """Write mean and variance, and return the mean and the reciprocal standard deviation."""
    b_mean, b_var = b_mean.to(mean.dtype.element_ty), b_var.to(var.dtype.element_ty)
    tl.store(mean + o_channel, b_mean, mask=m_channel)
    tl.store(var + o_channel, b_var, mask=m_channel)
    return b_mean, divide(1.0, sqrt(b_var + EPS))


@triton.jit
def given_statistics(mean, var, o_channel, m_channel, EPS: tl.constexpr):  # mean, var: [channels]
    """Mean and reciprocal standard deviation of each channel."""
    b_mean = tl.load(mean + o_channel, mask=m_channel, other=0.0)
    b_var = tl.load(var + o_channel, mask=m_channel, other=0.0)
    return b_mean, divide(1.0, sqrt(b_var + EPS))


@triton.jit
def through_statistics(b_sum, b_product, b_reciprocal, tiles):
    """What the gradients through mean and variance take from that of each entry: a constant, and a slope.

    Of each channel the sums are those of the gradient, and of it times the distance from the mean.
    """
    share = 1.0 / entries_before(value(tiles.total), tiles)  # once, as each division is a call that saves registers
    b_slope = b_product * b_reciprocal * b_reciprocal * share
    return (b_sum * share).to(b_reciprocal.dtype), b_slope.to(b_reciprocal.dtype)
