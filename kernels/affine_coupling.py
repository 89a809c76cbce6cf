"""Affine coupling and its inverse, forward and backward: a program for each tile of an example.

With n transformed entries, the forward reads x, shift and u and writes y: 4 n entries; the backward reads grad_y, x and
u and writes grad_x and both halves of grad_raw: 6 n, and 7 n for the inverse. Channels that are kept move twice more.
"""

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import add_parts, exp, on_board, plain, tanh, value, wide
from pnf.kernels._launch import REMEMBERED, cached_launch

TILE = 1024
COLUMNS = 128  # of a tile of the backward with the channels last, which leaves it enough rows to add up

CHECKERBOARD: tl.constexpr = tl.constexpr(1)
CHANNEL: tl.constexpr = tl.constexpr(2)


@triton.jit
def _tile(tiles):
    """The example of a program, the number of its tile there, and the tile's rows and columns."""
    groups, blocks = value(tiles.groups), value(tiles.blocks)
    i_tile = tl.program_id(0) % (groups * blocks)
    i_example = (tl.program_id(0) // (groups * blocks)).to(tl.int64)
    o_row = (i_tile // blocks).to(tl.int64) * tiles.ROWS + tl.arange(0, tiles.ROWS)[:, None]
    i_block = i_tile % blocks
    if tiles.HUGE:
        i_block = i_block.to(tl.int64)
    return i_example, i_tile, o_row, i_block * tiles.COLUMNS + tl.arange(0, tiles.COLUMNS)[None, :]


@triton.jit
def _halves(places, tiles, MASK: tl.constexpr):
    """Where in a row of x the entries begin that are transformed, and those that are kept."""
    moved, kept = 0, 0
    if MASK == CHANNEL:
        kept = places.half * value(tiles.parity)
        moved = places.half - kept
    return moved, kept


@triton.jit
def _load_scale(scale, o_row, o, tiles):
    """The bound of the log-scale of each row or column of a tile."""
    o_scale, n_scale = (o, tiles.columns) if tiles.LAST else (o_row, value(tiles.rows))
    return tl.load(scale + o_scale, mask=o_scale < n_scale, other=0.0)


@triton.jit
def _on_board(o_row, o, tiles):
    """Which entries of a tile a checkerboard keeps."""
    return on_board(o_row % value(tiles.sites) if tiles.LAST else o, value(tiles.width), value(tiles.parity))


@cached_launch
@triton.jit
def _forward(
    y,  # [examples, rows, columns], with gaps under a channel mask
    out,  # [examples], or the parts of its sums; [rows], or the parts of its sums
    x,
    raw,  # [examples, 2 rows, columns] or [examples, rows, 2 columns]
    scale,  # [rows] or [columns]
    log_det,  # [examples] or [rows]
    places,
    tiles,
    MASK: tl.constexpr,
    INVERSE: tl.constexpr,
):
    i_example, i_tile, o_row, o = _tile(tiles)
    moved, kept = _halves(places, tiles, MASK)
    m_row = o_row < value(tiles.rows)
    m = m_row & (o < tiles.columns)
    x += i_example * places.example_x + o_row * places.row_x
    y += i_example * places.example_x + o_row * places.row_x
    raw += i_example * places.example_raw + o_row * places.row_raw
    b_scale = _load_scale(scale, o_row, o, tiles)
    b_x = wide(tl.load(x + moved + o, mask=m, other=0.0))
    b_shift = wide(tl.load(raw + o, mask=m, other=0.0))
    b_s = b_scale * tanh(wide(tl.load(raw + places.half + o, mask=m, other=0.0)))[0]
    b_y = (b_x - b_shift) * exp(-b_s) if INVERSE else b_x * exp(b_s) + b_shift
    if MASK == CHECKERBOARD:
        m_kept = _on_board(o_row, o, tiles)
        b_y = tl.where(m_kept, b_x, b_y)
        b_s = tl.where(m_kept, 0.0, b_s)
    tl.store(y + moved + o, b_y, mask=m)
    if MASK == CHANNEL:
        tl.store(y + kept + o, tl.load(x + kept + o, mask=m), mask=m)
    if tiles.DENSE:
        blocks = value(tiles.blocks)
        _gain(out, log_det, tl.sum(b_s, 1, keep_dims=True), o_row, m_row, i_tile % blocks, blocks, INVERSE)
    else:
        parts = value(tiles.groups) * value(tiles.blocks)
        _gain(out, log_det, tl.sum(b_s), i_example, i_example >= 0, i_tile, parts, INVERSE)


@triton.jit
def _gain(out, log_det, b_sum, o_example, m, i_part, parts, INVERSE: tl.constexpr):
    """``out = log_det + b_sum`` if that is the only part of the sum; else only that part of it."""
    if parts == 1:
        b_log_det = tl.load(log_det + o_example, mask=m)
        tl.store(out + o_example, b_log_det - b_sum if INVERSE else b_log_det + b_sum, mask=m)
    else:
        tl.store(out + o_example * parts + i_part, b_sum, mask=m)


@cached_launch
@triton.jit(do_not_specialize=["n"])
def _add_log_det(
    out,  # [batch]
    parts,  # [batch, n]
    log_det,  # [batch]
    n,
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    b_sum = tl.zeros((BLOCK,), parts.dtype.element_ty)
    for i in range(0, n, BLOCK):
        o = i + tl.arange(0, BLOCK)
        b_sum += tl.load(parts + i_row * n + o, mask=o < n, other=0.0)
    b_log_det, b_total = tl.load(log_det + i_row), tl.sum(b_sum, 0)
    tl.store(out + i_row, b_log_det - b_total if INVERSE else b_log_det + b_total)


@cached_launch
@triton.jit(do_not_specialize=["parts"])
def _backward(
    grad_x,  # [examples, rows, columns], with gaps under a channel mask
    grad_raw,  # [examples, 2 rows, columns] or [examples, rows, 2 columns]
    grad_scale,  # the parts of its sums [rows, examples * blocks] or [columns, examples * groups]
    grad_y,
    grad_log_det,  # [examples] or [rows]
    x,
    raw,
    scale,  # [rows] or [columns]
    parts,
    places,
    tiles,
    MASK: tl.constexpr,
    INVERSE: tl.constexpr,
):
    i_example, i_tile, o_row, o = _tile(tiles)
    moved, kept = _halves(places, tiles, MASK)
    m_row = o_row < value(tiles.rows)
    m = m_row & (o < tiles.columns)
    o_x = i_example * places.example_x + o_row * places.row_x
    o_raw = i_example * places.example_raw + o_row * places.row_raw
    b_scale = _load_scale(scale, o_row, o, tiles)
    b_grad = tl.load(grad_log_det + o_row, mask=m_row, other=0.0) if tiles.DENSE else tl.load(grad_log_det + i_example)
    b_g = wide(tl.load(grad_y + o_x + moved + o, mask=m, other=0.0))
    b_x = wide(tl.load(x + o_x + moved + o, mask=m, other=0.0))
    b_tanh, b_slope = tanh(wide(tl.load(raw + o_raw + places.half + o, mask=m, other=0.0)))
    b_s = b_scale * b_tanh
    if INVERSE:
        b_gx = b_g * exp(-b_s)
        b_gshift = -b_gx
        b_gs = b_gshift * (b_x - wide(tl.load(raw + o_raw + o, mask=m, other=0.0))) - b_grad
    else:
        b_gx = b_g * exp(b_s)
        b_gshift = b_g
        b_gs = b_gx * b_x + b_grad
    b_gu = b_gs * b_scale * b_slope
    b_gscale = tl.where(m, b_gs * b_tanh, 0.0)
    if MASK == CHECKERBOARD:
        m_kept = _on_board(o_row, o, tiles)
        b_gx = tl.where(m_kept, b_g, b_gx)
        b_gshift = tl.where(m_kept, 0.0, b_gshift)
        b_gu = tl.where(m_kept, 0.0, b_gu)
        b_gscale = tl.where(m_kept, 0.0, b_gscale)
    tl.store(grad_x + o_x + moved + o, b_gx, mask=m)
    tl.store(grad_raw + o_raw + o, b_gshift, mask=m)
    tl.store(grad_raw + o_raw + places.half + o, b_gu, mask=m)
    if MASK == CHANNEL:
        tl.store(grad_x + o_x + kept + o, tl.load(grad_y + o_x + kept + o, mask=m), mask=m)
    if tiles.LAST:
        o_part = o.to(tl.int64) * parts + i_example * value(tiles.groups) + i_tile // value(tiles.blocks)
        tl.store(grad_scale + o_part, tl.sum(b_gscale, 0, keep_dims=True), mask=o < tiles.columns)
    else:
        o_part = o_row * parts + i_example * value(tiles.blocks) + i_tile % value(tiles.blocks)
        tl.store(grad_scale + o_part, tl.sum(b_gscale, 1, keep_dims=True), mask=m_row)


class Places(NamedTuple):
    """Where entries lie in memory."""

    example_x: int  # from an example of x to the next
    row_x: int
    example_raw: int
    row_raw: int
    half: int  # from shift to u, and under a channel mask from one half of x to the other


class Tiling(NamedTuple):
    """Memory as matrices, one for each example or one for the whole batch, cut into tiles.

    Their rows are channels, with sites as columns; where the channels come last, sites with channels as columns; where
    there is one site, examples with channels as columns. Integers are :func:`plain`, so that few kernels are compiled;
    but columns, and all places, are as they are, since accesses are wide where they are multiples of 16.
    """

    columns: int
    examples: int
    rows: int
    sites: int
    width: int
    groups: int  # of rows
    blocks: int  # of columns
    parity: int
    LAST: tl.constexpr
    DENSE: tl.constexpr
    HUGE: tl.constexpr
    ROWS: tl.constexpr
    COLUMNS: tl.constexpr

    def counts(self) -> tuple[int, int, int]:
        """The numbers of examples, groups and blocks: each program has one of each."""
        return self.examples // 2 - 1, self.groups // 2 - 1, self.blocks // 2 - 1

    def warps(self) -> int:
        return max(self.ROWS.value * self.COLUMNS.value // 256, 1)


@functools.lru_cache(REMEMBERED)
def _cut(
    batch: int, channels: int, transformed: int, height: int, width: int, parity: int, last: bool, widest: int
) -> tuple[Places, Tiling]:
    """How x and raw are cut, with at most ``widest`` columns of channels in a tile."""
    sites = height * width
    dense = sites == 1
    last = last or dense
    rows, columns = (batch if dense else sites, transformed) if last else (transformed, sites)
    block = min(triton.next_power_of_2(columns), widest if last else TILE)
    tile = max(TILE // block, 1)
    if rows <= tile // 8:
        tile //= 8
    groups, blocks = triton.cdiv(rows, tile), triton.cdiv(columns, block)
    line = 1 if last else sites
    places = Places(
        example_x=0 if dense else channels * sites,
        row_x=channels if last else sites,
        example_raw=0 if dense else 2 * transformed * sites,
        row_raw=2 * transformed if last else sites,
        half=transformed * line,
    )
    tiles = Tiling(
        columns=columns,
        examples=plain(1 if dense else batch),
        rows=plain(rows),
        sites=plain(sites),
        width=plain(width),
        groups=plain(groups),
        blocks=plain(blocks),
        parity=plain(parity),
        LAST=tl.constexpr(last),
        DENSE=tl.constexpr(dense),
        HUGE=tl.constexpr(columns >= 2**31),
        ROWS=tl.constexpr(tile),
        COLUMNS=tl.constexpr(block),
    )
    return places, tiles


def affine_coupling(
    y: Tensor,  # [batch, channels, height, width], contiguous or with its channels last
    out: Tensor,  # [batch]
    x: Tensor,
    raw: Tensor,  # the same with 2 K channels
    scale: Tensor,  # [K]
    log_det: Tensor,  # [batch]
    batch: int,
    channels: int,
    height: int,
    width: int,
    mask: int,
    parity: int,
    last: bool,
    inverse: bool,
) -> None:
    """``y = x exp(s) + shift``, ``out = log_det + sum(s)``, ``s = scale tanh(u)``, or what undoes that."""
    transformed = channels // 2 if mask == CHANNEL.value else channels
    if batch * transformed * height * width == 0:
        out.copy_(log_det)
        return
    places, tiles = _cut(batch, channels, transformed, height, width, parity, last, widest=TILE)
    examples, groups, blocks = tiles.counts()
    n = blocks if tiles.DENSE.value else groups * blocks
    parts = out if n == 1 else scale.new_empty(batch, n)
    _forward[(examples * groups * blocks,)](
        y, parts, x, raw, scale, log_det, places, tiles, mask, inverse, num_warps=tiles.warps()
    )
    if n > 1:
        block = 64 if n <= 64 else TILE
        _add_log_det[(batch,)](out, parts, log_det, n, inverse, block, num_warps=max(block // 256, 1))


def affine_coupling_backward(
    grad_x: Tensor,  # [batch, channels, height, width], contiguous or with its channels last
    grad_raw: Tensor,  # the same with 2 K channels
    grad_scale: Tensor,  # [K]
    grad_y: Tensor,
    grad_log_det: Tensor,  # [batch]
    x: Tensor,
    raw: Tensor,
    scale: Tensor,
    batch: int,
    channels: int,
    height: int,
    width: int,
    mask: int,
    parity: int,
    last: bool,
    inverse: bool,
) -> None:
    """The gradients of :func:`affine_coupling` in x, raw and scale."""
    transformed = channels // 2 if mask == CHANNEL.value else channels
    if batch * transformed * height * width == 0:
        grad_scale.zero_()
        return
    places, tiles = _cut(batch, channels, transformed, height, width, parity, last, widest=COLUMNS)
    examples, groups, blocks = tiles.counts()
    n = examples * (groups if tiles.LAST.value else blocks)
    parts = grad_scale if n == 1 else grad_scale.new_empty(transformed, n)
    _backward[(examples * groups * blocks,)](
        grad_x, grad_raw, parts, grad_y, grad_log_det, x, raw, scale, n, places, tiles,
        mask, inverse, num_warps=tiles.warps(),
    )  # fmt: skip
    if n > 1:
        add_parts(grad_scale, parts)
