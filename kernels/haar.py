"""Haar splits and merges, up to three levels of them: a program for a tile of x, which stays in registers.

Each entry is read once and written once, so the floor is twice the bytes of x over the memory's bandwidth.

x is ``[rows, width, inner]`` in memory. A tile is ``[GROUPS, UNIT]``: contiguous pieces, of a power of two of entries,
of as many lines. Along the height, and along the width where ``inner`` is not 1, the two entries of a pair are two
loads. Otherwise neighbours are told apart in registers, so that the accesses stay 128 bits wide.

``details`` are the finest first; of two in a level, that of the split which is taken first comes first.
"""

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._launch import cached_launch

WARPS = 4
VECTOR = 16  # bytes of the widest access
FLAT = 8  # such accesses of a thread to x, where nothing else has an axis

# The numbers of the orders of splits: along one axis, along the height and then the width, along the width and then the
# height.
ONE_AXIS: tl.constexpr = tl.constexpr(0)
HEIGHT_WIDTH: tl.constexpr = tl.constexpr(1)


@triton.jit
def _haar(b_0, b_1, FACTOR: tl.constexpr):
    if b_0.dtype != tl.float64:
        b_0 = b_0.to(tl.float32)
        b_1 = b_1.to(tl.float32)
    return FACTOR * (b_0 + b_1), FACTOR * (b_0 - b_1)


@triton.jit
def _unzip(b_x):
    """The even and the odd entries along the last axis."""
    return tl.split(tl.reshape(b_x, b_x.shape[:-1] + [b_x.shape[-1] // 2, 2]))  # noqa: RUF005


@triton.jit
def _zip(b_0, b_1):
    return tl.reshape(tl.join(b_0, b_1), b_0.shape[:-1] + [b_0.shape[-1] * 2])  # noqa: RUF005


@triton.jit
def _tile(
    groups,
    per_block,
    pieces,
    LONG: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The groups of a program: block, column of the block, and piece of the run or line; and which exist."""
    first = tl.program_id(0).to(tl.int64) * GROUPS
    block = first // per_block
    rest = first - block * per_block
    # A block that is not too large is taken apart in 32 bits, since 64-bit divisions are slow.
    if not LONG:
        rest = rest.to(tl.int32)
    o_group = rest + tl.arange(0, GROUPS)
    o_block = block + o_group // per_block
    o_line = o_group % per_block
    m_group = first + tl.arange(0, GROUPS) < groups
    return o_block, o_line // pieces, o_line % pieces, m_group[:, None]


@triton.jit
def _places(
    tile,
    columns,
    pieces,
    ROW_LEVEL: tl.constexpr,
    ROW: tl.constexpr,
    COLUMN_LEVEL: tl.constexpr,
    COLUMN: tl.constexpr,
    LEVELS: tl.constexpr,
    ZIPPED: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Where the tile lies in an image whose height and width are halved so often, from a row and a column of it on."""
    o_block, o_column, o_piece, _ = tile
    o_row = o_block * (1 << (LEVELS - ROW_LEVEL)) + ROW
    if ZIPPED:
        WIDTH: tl.constexpr = UNIT >> COLUMN_LEVEL
        o_x = (o_row * pieces + o_piece) * WIDTH
        return o_x[:, None] + tl.arange(0, WIDTH)[None, :]
    else:  # noqa: RET505 - Triton compiles what follows a return, too
        MANY: tl.constexpr = 1 << (LEVELS - COLUMN_LEVEL)
        o_x = (((o_row * columns + o_column) * MANY + COLUMN) * pieces + o_piece) * UNIT
        return o_x[:, None] + tl.arange(0, UNIT)[None, :]


@triton.jit
def _analyse(
    x,
    details,
    tile,
    columns,
    pieces,
    LEVEL: tl.constexpr,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    LEVELS: tl.constexpr,
    ORDER: tl.constexpr,
    ZIPPED: tl.constexpr,
    UNIT: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """The mean of that level, once its details are written."""
    m_x = tile[3]
    if LEVEL == 0:
        AT: tl.constexpr = LEVELS if ORDER == ONE_AXIS else 0
        p_x = x + _places(tile, columns, pieces, 0, ROW, AT, COLUMN, LEVELS, ZIPPED, UNIT)
        return tl.load(p_x, mask=m_x, other=0.0)
    elif ORDER == ONE_AXIS:  # noqa: RET505
        b_0 = _analyse(x, details, tile, columns, pieces, LEVEL - 1, 2 * ROW, 0, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
        b_1 = _analyse(
            x, details, tile, columns, pieces, LEVEL - 1, 2 * ROW + 1, 0, LEVELS, ORDER, ZIPPED, UNIT, FACTOR
        )
        b_s, b_d = _haar(b_0, b_1, FACTOR)
        o_d = _places(tile, columns, pieces, LEVEL, ROW, LEVELS, 0, LEVELS, ZIPPED, UNIT)
        tl.store(details[LEVEL - 1] + o_d, b_d, mask=m_x)
        return b_s
    else:
        FINE: tl.constexpr = LEVEL - 1
        LEFT: tl.constexpr = 2 * COLUMN
        TOP: tl.constexpr = 2 * ROW
        first, second = details[2 * FINE], details[2 * FINE + 1]
        b_00 = _analyse(x, details, tile, columns, pieces, FINE, TOP, LEFT, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
        b_10 = _analyse(x, details, tile, columns, pieces, FINE, TOP + 1, LEFT, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
        if not ZIPPED:
            b_01 = _analyse(x, details, tile, columns, pieces, FINE, TOP, LEFT + 1, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
            b_11 = _analyse(
                x, details, tile, columns, pieces, FINE, TOP + 1, LEFT + 1, LEVELS, ORDER, ZIPPED, UNIT, FACTOR
            )
        if ORDER == HEIGHT_WIDTH:
            b_0, b_d = _haar(b_00, b_10, FACTOR)
            o_d = _places(tile, columns, pieces, LEVEL, ROW, FINE, LEFT, LEVELS, ZIPPED, UNIT)
            tl.store(first + o_d, b_d, mask=m_x)
            if ZIPPED:
                b_0, b_1 = _unzip(b_0)
            else:
                b_1, b_d = _haar(b_01, b_11, FACTOR)
                o_d = _places(tile, columns, pieces, LEVEL, ROW, FINE, LEFT + 1, LEVELS, ZIPPED, UNIT)
                tl.store(first + o_d, b_d, mask=m_x)
        else:
            if ZIPPED:
                b_00, b_01 = _unzip(b_00)
                b_10, b_11 = _unzip(b_10)
            b_0, b_d = _haar(b_00, b_01, FACTOR)
            o_d = _places(tile, columns, pieces, FINE, TOP, LEVEL, COLUMN, LEVELS, ZIPPED, UNIT)
            tl.store(first + o_d, b_d, mask=m_x)
            b_1, b_d = _haar(b_10, b_11, FACTOR)
            o_d = _places(tile, columns, pieces, FINE, TOP + 1, LEVEL, COLUMN, LEVELS, ZIPPED, UNIT)
            tl.store(first + o_d, b_d, mask=m_x)
        b_s, b_d = _haar(b_0, b_1, FACTOR)
        o_d = _places(tile, columns, pieces, LEVEL, ROW, LEVEL, COLUMN, LEVELS, ZIPPED, UNIT)
        tl.store(second + o_d, b_d, mask=m_x)
        return b_s


@triton.jit
def _synthesise(
    x,
    b_s,
    details,
    tile,
    columns,
    pieces,
    LEVEL: tl.constexpr,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    LEVELS: tl.constexpr,
    ORDER: tl.constexpr,
    ZIPPED: tl.constexpr,
    UNIT: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Write that part of x whose mean of that level is b_s."""
    m_x = tile[3]
    if LEVEL == 0:
        AT: tl.constexpr = LEVELS if ORDER == ONE_AXIS else 0
        tl.store(x + _places(tile, columns, pieces, 0, ROW, AT, COLUMN, LEVELS, ZIPPED, UNIT), b_s, mask=m_x)
    elif ORDER == ONE_AXIS:
        o_d = _places(tile, columns, pieces, LEVEL, ROW, LEVELS, 0, LEVELS, ZIPPED, UNIT)
        b_0, b_1 = _haar(b_s, tl.load(details[LEVEL - 1] + o_d, mask=m_x, other=0.0), FACTOR)
        _synthesise(x, b_0, details, tile, columns, pieces, LEVEL - 1, 2 * ROW, 0, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
        _synthesise(
            x, b_1, details, tile, columns, pieces, LEVEL - 1, 2 * ROW + 1, 0, LEVELS, ORDER, ZIPPED, UNIT, FACTOR
        )
    else:
        FINE: tl.constexpr = LEVEL - 1
        LEFT: tl.constexpr = 2 * COLUMN
        TOP: tl.constexpr = 2 * ROW
        first, second = details[2 * FINE], details[2 * FINE + 1]
        o_d = _places(tile, columns, pieces, LEVEL, ROW, LEVEL, COLUMN, LEVELS, ZIPPED, UNIT)
        b_0, b_1 = _haar(b_s, tl.load(second + o_d, mask=m_x, other=0.0), FACTOR)
        if ORDER == HEIGHT_WIDTH:
            if ZIPPED:
                b_0 = _zip(b_0, b_1)
            o_d = _places(tile, columns, pieces, LEVEL, ROW, FINE, LEFT, LEVELS, ZIPPED, UNIT)
            b_00, b_10 = _haar(b_0, tl.load(first + o_d, mask=m_x, other=0.0), FACTOR)
            if not ZIPPED:
                o_d = _places(tile, columns, pieces, LEVEL, ROW, FINE, LEFT + 1, LEVELS, ZIPPED, UNIT)
                b_01, b_11 = _haar(b_1, tl.load(first + o_d, mask=m_x, other=0.0), FACTOR)
        else:
            o_d = _places(tile, columns, pieces, FINE, TOP, LEVEL, COLUMN, LEVELS, ZIPPED, UNIT)
            b_00, b_01 = _haar(b_0, tl.load(first + o_d, mask=m_x, other=0.0), FACTOR)
            o_d = _places(tile, columns, pieces, FINE, TOP + 1, LEVEL, COLUMN, LEVELS, ZIPPED, UNIT)
            b_10, b_11 = _haar(b_1, tl.load(first + o_d, mask=m_x, other=0.0), FACTOR)
            if ZIPPED:
                b_00 = _zip(b_00, b_01)
                b_10 = _zip(b_10, b_11)
        _synthesise(x, b_00, details, tile, columns, pieces, FINE, TOP, LEFT, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
        _synthesise(x, b_10, details, tile, columns, pieces, FINE, TOP + 1, LEFT, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
        if not ZIPPED:
            _synthesise(
                x, b_01, details, tile, columns, pieces, FINE, TOP, LEFT + 1, LEVELS, ORDER, ZIPPED, UNIT, FACTOR
            )
            _synthesise(
                x, b_11, details, tile, columns, pieces, FINE, TOP + 1, LEFT + 1, LEVELS, ORDER, ZIPPED, UNIT, FACTOR
            )


@cached_launch
@triton.jit
def _tiles(
    x,
    base,
    d_0,
    d_1,
    d_2,
    d_3,
    d_4,
    d_5,
    groups,
    per_block,
    columns,
    pieces,
    INVERSE: tl.constexpr,
    LEVELS: tl.constexpr,
    ORDER: tl.constexpr,
    ZIPPED: tl.constexpr,
    FACTOR: tl.constexpr,
    LONG: tl.constexpr,
    GROUPS: tl.constexpr,
    UNIT: tl.constexpr,
):
    details = (d_0, d_1, d_2, d_3, d_4, d_5)
    tile = _tile(groups, per_block, pieces, LONG, GROUPS)
    p_base = base + _places(tile, columns, pieces, LEVELS, 0, LEVELS, 0, LEVELS, ZIPPED, UNIT)
    if INVERSE:
        b_s = tl.load(p_base, mask=tile[3], other=0.0)
        _synthesise(x, b_s, details, tile, columns, pieces, LEVELS, 0, 0, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
    else:
        b_s = _analyse(x, details, tile, columns, pieces, LEVELS, 0, 0, LEVELS, ORDER, ZIPPED, UNIT, FACTOR)
        tl.store(p_base, b_s, mask=tile[3])


@cached_launch
@triton.jit
def _flat(
    x,  # [blocks << LEVELS]
    base,  # [blocks]
    d_0,
    d_1,
    d_2,
    blocks,
    INVERSE: tl.constexpr,
    LEVELS: tl.constexpr,
    FACTOR: tl.constexpr,
    FLAT: tl.constexpr,
):
    """One axis whose neighbours are neighbours in memory: nothing else has an axis."""
    details = (d_0, d_1, d_2)
    SMALL: tl.constexpr = FLAT >> LEVELS
    first = tl.program_id(0).to(tl.int64) * SMALL
    left = blocks - first
    p_x = x + (first << LEVELS) + tl.arange(0, FLAT)
    m_x = tl.arange(0, FLAT) < (left << LEVELS)
    p_base = base + first + tl.arange(0, SMALL)
    m_base = tl.arange(0, SMALL) < left
    if INVERSE:
        b_s = tl.load(p_base, mask=m_base, other=0.0)
        for LEVEL in tl.static_range(LEVELS, 0, -1):
            o_d = tl.arange(0, FLAT >> LEVEL)
            p_d = details[LEVEL - 1] + (first << (LEVELS - LEVEL)) + o_d
            b_0, b_1 = _haar(b_s, tl.load(p_d, mask=o_d < (left << (LEVELS - LEVEL)), other=0.0), FACTOR)
            b_s = _zip(b_0, b_1)
        tl.store(p_x, b_s, mask=m_x)
    else:
        b_s = tl.load(p_x, mask=m_x, other=0.0)
        for LEVEL in tl.static_range(1, LEVELS + 1):
            o_d = tl.arange(0, FLAT >> LEVEL)
            p_d = details[LEVEL - 1] + (first << (LEVELS - LEVEL)) + o_d
            b_0, b_1 = _unzip(b_s)
            b_s, b_d = _haar(b_0, b_1, FACTOR)
            tl.store(p_d, b_d, mask=o_d < (left << (LEVELS - LEVEL)))
        tl.store(p_base, b_s, mask=m_base)


def _launch(
    x: Tensor,
    parts: tuple[Tensor, ...],
    rows: int,
    width: int,
    inner: int,
    levels: int,
    order: int,
    factor: float,
    inverse: bool,
) -> None:
    if rows * width * inner == 0:
        return
    # One rounding after each operation, as in the reference, denormals included.
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    one_axis, columns = order == 0, width >> levels
    lanes = 32 * WARPS
    widest = VECTOR // x.element_size()
    if one_axis and inner == 1:
        blocks = rows * columns
        block = FLAT * lanes * widest
        grid = (triton.cdiv(blocks, block >> levels),)
        _flat[grid](x, *parts[:4], blocks, inverse, levels, factor, block, **options)
        return
    zipped = inner == 1
    line = width if zipped else inner
    unit = min(line & -line, 64 if zipped else 16)
    if one_axis:
        blocks, columns = rows * columns, 1
    else:
        blocks = rows >> levels
    pieces = line // unit
    per_block = pieces if zipped else pieces * columns
    groups = blocks * per_block
    long = per_block * unit >= 2**30
    # One access of a thread for each line of the tile; two where there are few lines, or halves of them are stored.
    block = lanes * min(unit, widest) * (2 if zipped or one_axis else 1)
    size = max(block // unit, 1)
    grid = (triton.cdiv(groups, size),)
    _tiles[grid](
        x,
        *parts,
        groups,
        per_block,
        columns,
        pieces,
        inverse,
        levels,
        order,
        zipped,
        factor,
        long,
        size,
        unit,
        **options,
    )


def haar_split(
    s: Tensor,  # [pairs, inner]
    d: Tensor,  # [pairs, inner]
    x: Tensor,  # [pairs, 2, inner]
    pairs: int,
    inner: int,
    factor: float,
) -> None:
    """``s, d = factor * (x0 + x1), factor * (x0 - x1)``."""
    _launch(x, (s, d, *(s,) * 5), 1, 2 * pairs, inner, 1, 0, factor, False)


def haar_merge(
    x: Tensor,  # [pairs, 2, inner]
    s: Tensor,  # [pairs, inner]
    d: Tensor,  # [pairs, inner]
    pairs: int,
    inner: int,
    factor: float,
) -> None:
    """``x0, x1 = factor * (s + d), factor * (s - d)``."""
    _launch(x, (s, d, *(s,) * 5), 1, 2 * pairs, inner, 1, 0, factor, True)


def haar_pyramid(
    base: Tensor,  # [rows >> levels, width >> levels, inner]
    d_0: Tensor,
    d_1: Tensor,
    d_2: Tensor,
    d_3: Tensor,
    d_4: Tensor,
    d_5: Tensor,
    x: Tensor,  # [rows, width, inner]
    rows: int,
    width: int,
    inner: int,
    levels: int,
    order: int,
    factor: float,
) -> None:
    """As many levels of splits; with order 0 along the width, and the base has all rows."""
    _launch(x, (base, d_0, d_1, d_2, d_3, d_4, d_5), rows, width, inner, levels, order, factor, False)


def haar_pyramid_inverse(
    x: Tensor,  # [rows, width, inner]
    base: Tensor,  # [rows >> levels, width >> levels, inner]
    d_0: Tensor,
    d_1: Tensor,
    d_2: Tensor,
    d_3: Tensor,
    d_4: Tensor,
    d_5: Tensor,
    rows: int,
    width: int,
    inner: int,
    levels: int,
    order: int,
    factor: float,
) -> None:
    """As many levels of merges, the transpose of :func:`haar_pyramid`."""
    _launch(x, (base, d_0, d_1, d_2, d_3, d_4, d_5), rows, width, inner, levels, order, factor, True)
