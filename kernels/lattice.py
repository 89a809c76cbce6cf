"""The lattice of 8-bit images: a program for a tile of pairs, which stays in registers.

Each entry is read once and written once, so the floor is 2.5 times the bytes of x over the memory's bandwidth. A merge
needs the first pixels of `pairs` only. Where they are not interleaved with the second ones its floor is 2 times.

x and `pairs` are ``[blocks, 2, run]`` in memory. Where the run is 1, neighbours are told apart in registers. Otherwise
a tile is ``[GROUPS, UNIT]``: contiguous pieces, of a power of two of entries, of as many runs.
"""

import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._common import divide, sqrt, wide
from pnf.kernels._launch import cached_launch

WARPS = 4
VECTOR = 16  # bytes of the widest access

LEAST = tl.constexpr(2.0**-24)  # as in pnf/reference/lattice.py


@triton.jit
def _places(groups, pieces, LONG: tl.constexpr, GROUPS: tl.constexpr, UNIT: tl.constexpr):
    """Where the pairs of a tile, their first and their second pixels lie, and which of them exist."""
    first = tl.program_id(0).to(tl.int64) * GROUPS
    block = first // pieces
    rest = first - block * pieces
    # What is not too large is taken apart in 32 bits, since 64-bit divisions are slow.
    if not LONG:
        rest = rest.to(tl.int32)
    o_block = block + (rest + tl.arange(0, GROUPS)) // pieces
    o_group = first + tl.arange(0, GROUPS)
    o_unit = tl.arange(0, UNIT)[None, :]
    o_pair = (o_group * UNIT)[:, None] + o_unit
    o_first = ((o_group + o_block * pieces) * UNIT)[:, None] + o_unit
    o_second = ((o_group + (o_block + 1) * pieces) * UNIT)[:, None] + o_unit
    return o_pair, o_first, o_second, (o_group < groups)[:, None]


# Comparisons are written so that NaN goes through.


@triton.jit
def _at_least(b_x, bound):
    return tl.where(b_x < bound, bound, b_x)


@triton.jit
def _at_most(b_x, bound):
    return tl.where(b_x > bound, bound, b_x)


@triton.jit
def _clamped(b_x, least, most):
    return _at_most(_at_least(b_x, least), most)


@triton.jit
def _over(b_x, levels):
    """The quotient by a number of levels."""
    return divide(b_x, tl.full([1], levels, b_x.dtype))


@triton.jit
def _split_pairs(b_first, b_second, levels):
    """The coarser pixels, and both pixels of the pairs."""
    b_first, b_second = wide(b_first), wide(b_second)
    own, last = levels.to(b_first.dtype), (levels - 1).to(b_first.dtype)
    b_first, b_second = own * b_first, own * b_second
    b_a, b_b = _clamped(tl.floor(b_first), 0.0, last), _clamped(tl.floor(b_second), 0.0, last)
    b_p, b_q = b_first - b_a, b_second - b_b
    b_gap = b_p - b_q
    b_width = 1.0 - tl.abs(b_gap)
    b_v = _clamped(divide(_at_most(b_p, b_q), _at_least(b_width, LEAST)), 0.0, 1.0)
    b_w = b_gap * (1.0 + b_width)
    b_coarser = _over(b_a + b_b + b_v, 2 * levels - 1)
    return b_coarser, _over(b_a + (1.0 + b_w) * 0.5, levels), _over(b_b + (1.0 - b_w) * 0.5, levels)


@triton.jit
def _merge_pairs(b_coarser, b_first, levels):
    """Both pixels of the pairs, from the coarser ones and the first ones of `pairs`."""
    b_coarser, b_first = wide(b_coarser), wide(b_first)
    own, last = levels.to(b_first.dtype), (levels - 1).to(b_first.dtype)
    b_scaled = (2 * levels - 1).to(b_first.dtype) * b_coarser
    b_total = _clamped(tl.floor(b_scaled), 0.0, (2 * levels - 2).to(b_first.dtype))
    b_v = _clamped(b_scaled - b_total, 0.0, 1.0)
    b_first = own * b_first
    b_a = _at_least(_at_most(_clamped(tl.floor(b_first), 0.0, last), b_total), b_total - last)
    b_w = _clamped(2.0 * (b_first - b_a) - 1.0, LEAST - 1.0, 1.0 - LEAST)
    b_width = sqrt(1.0 - tl.abs(b_w))
    b_least = b_v * b_width
    b_gap = divide(b_w, 1.0 + b_width)
    b_first = b_a + b_least + _at_least(b_gap, 0.0)
    b_second = b_total - b_a + b_least + _at_least(-b_gap, 0.0)
    return _clamped(_over(b_first, levels), 0.0, 1.0), _clamped(_over(b_second, levels), 0.0, 1.0)


@cached_launch
@triton.jit(do_not_specialize=["levels"])
def _split(
    coarser,  # [blocks, run]
    pairs,  # [blocks, 2, run]
    x,  # [blocks, 2, run]
    groups,
    pieces,
    levels,
    ADJACENT: tl.constexpr,
    LONG: tl.constexpr,
    GROUPS: tl.constexpr,
    UNIT: tl.constexpr,
):
    levels = levels.to(tl.int64)
    if ADJACENT:
        first = tl.program_id(0).to(tl.int64) * GROUPS
        o_both = tl.arange(0, 2 * GROUPS)
        m_both = o_both < 2 * (groups - first)
        b_x = tl.load(x + 2 * first + o_both, mask=m_both, other=0.0)
        b_first, b_second = tl.split(tl.reshape(b_x, (GROUPS, 2)))
        b_coarser, b_first, b_second = _split_pairs(b_first, b_second, levels)
        o_pair = tl.arange(0, GROUPS)
        tl.store(coarser + first + o_pair, b_coarser, mask=o_pair < groups - first)
        b_pairs = tl.reshape(tl.join(b_first, b_second), (2 * GROUPS,))
        tl.store(pairs + 2 * first + o_both, b_pairs, mask=m_both)
    else:
        o_pair, o_first, o_second, m_pair = _places(groups, pieces, LONG, GROUPS, UNIT)
        b_first = tl.load(x + o_first, mask=m_pair, other=0.0)
        b_second = tl.load(x + o_second, mask=m_pair, other=0.0)
        b_coarser, b_first, b_second = _split_pairs(b_first, b_second, levels)
        tl.store(coarser + o_pair, b_coarser, mask=m_pair)
        tl.store(pairs + o_first, b_first, mask=m_pair)
        tl.store(pairs + o_second, b_second, mask=m_pair)


@cached_launch
@triton.jit(do_not_specialize=["levels"])
def _merge(
    x,  # [blocks, 2, run]
    coarser,  # [blocks, run]
    pairs,  # [blocks, 2, run]
    groups,
    pieces,
    levels,
    ADJACENT: tl.constexpr,
    LONG: tl.constexpr,
    GROUPS: tl.constexpr,
    UNIT: tl.constexpr,
):
    levels = levels.to(tl.int64)
    if ADJACENT:
        first = tl.program_id(0).to(tl.int64) * GROUPS
        o_both, o_pair = tl.arange(0, 2 * GROUPS), tl.arange(0, GROUPS)
        m_both = o_both < 2 * (groups - first)
        b_coarser = tl.load(coarser + first + o_pair, mask=o_pair < groups - first, other=0.0)
        b_pairs = tl.load(pairs + 2 * first + o_both, mask=m_both, other=0.0)
        b_first, _ = tl.split(tl.reshape(b_pairs, (GROUPS, 2)))
        b_first, b_second = _merge_pairs(b_coarser, b_first, levels)
        tl.store(x + 2 * first + o_both, tl.reshape(tl.join(b_first, b_second), (2 * GROUPS,)), mask=m_both)
    else:
        o_pair, o_first, o_second, m_pair = _places(groups, pieces, LONG, GROUPS, UNIT)
        b_coarser = tl.load(coarser + o_pair, mask=m_pair, other=0.0)
        b_first = tl.load(pairs + o_first, mask=m_pair, other=0.0)
        b_first, b_second = _merge_pairs(b_coarser, b_first, levels)
        tl.store(x + o_first, b_first, mask=m_pair)
        tl.store(x + o_second, b_second, mask=m_pair)


def _launch(kernel, tensors: tuple[Tensor, ...], blocks: int, run: int, levels: int) -> None:
    if blocks * run == 0:
        return
    unit = min(run & -run, 16)
    pieces = run // unit
    groups = blocks * pieces
    # One access of a thread to the coarser image.
    size = 32 * WARPS * VECTOR // (tensors[0].element_size() * unit)
    grid = (triton.cdiv(groups, size),)
    # One rounding after each operation, as in the reference, or a pixel could come to another level.
    kernel[grid](
        *tensors,
        groups,
        pieces,
        levels,
        run == 1,
        pieces * unit >= 2**30,
        size,
        unit,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


def lattice_split(
    coarser: Tensor,  # [blocks, run]
    pairs: Tensor,  # [blocks, 2, run]
    x: Tensor,  # [blocks, 2, run]
    blocks: int,
    run: int,
    levels: int,
) -> None:
    """``coarser = (a + b + v) / (2 L - 1)``, and the pairs ``(a + (1 + w) / 2) / L, (b + (1 - w) / 2) / L``."""
    _launch(_split, (coarser, pairs, x), blocks, run, levels)


def lattice_merge(
    x: Tensor,  # [blocks, 2, run]
    coarser: Tensor,  # [blocks, run]
    pairs: Tensor,  # [blocks, 2, run]
    blocks: int,
    run: int,
    levels: int,
) -> None:
    """The inverse, with ``|p - q| = 1 - sqrt(1 - |w|)`` and ``min(p, q) = v sqrt(1 - |w|)``."""
    _launch(_merge, (x, coarser, pairs), blocks, run, levels)
