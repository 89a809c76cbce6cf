"""Space-to-depth in two orders and back: pure moves, of integers as large as an entry.

Every entry is read once and written once, so the floor is twice the bytes of x over the memory's bandwidth. With the
channels first a program takes a run of pixels of one plane and row parity; with the channels last, a run of pixels and
of channels, both sub-pixels of both rows.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnf.kernels._launch import cached_launch

BLOCK = 2048
WARPS = 4
MAX_CHANNELS = 64

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@cached_launch
@triton.jit(do_not_specialize=["channels", "blocks"])
def _lines(
    y,  # [B, 4C, h, w]
    x,  # [B, C, h, 2, w, 2]
    channels,
    pitch,  # 2w
    plane,  # h w
    blocks,
    FACTOR: tl.constexpr,
    INVERSE: tl.constexpr,
    WORDS: tl.constexpr,  # integers of an entry
    BLOCK: tl.constexpr,
):
    i_block, i = tl.program_id(0) % blocks, tl.program_id(0) // blocks % 2
    i_plane = (tl.program_id(0) // blocks // 2).to(tl.int64)
    i_batch, i_channel = i_plane // channels, i_plane % channels
    if FACTOR:
        p_even, p_odd = 3 * i * channels + i_channel, (2 - i) * channels + i_channel
    else:
        p_even = 4 * i_channel + 2 * i
        p_odd = p_even + 1
    first = i_block.to(tl.int64) * BLOCK
    o_y = tl.arange(0, BLOCK)
    m_y = o_y < plane - first
    even = y + ((i_batch * 4 * channels + p_even) * plane + first) * WORDS
    odd = y + ((i_batch * 4 * channels + p_odd) * plane + first) * WORDS
    # The pixels of a block may span rows of x, between which lie those of the other parity. The remainder is spelt out,
    # since Triton does not see that a `%` of scalars is a multiple of 16.
    row = 2 * first // pitch
    line = x + (i_plane * 4 * plane + (2 * row + i) * pitch) * WORDS
    o_pixel = (2 * first - row * pitch).to(tl.int32) + tl.arange(0, 2 * BLOCK)
    o_x = (o_pixel // pitch).to(tl.int64) * 2 * pitch + o_pixel % pitch
    m_x = tl.arange(0, 2 * BLOCK) < 2 * (plane - first)
    for word in tl.static_range(WORDS):
        if INVERSE:
            b_even = tl.load(even + o_y * WORDS + word, mask=m_y)
            b_odd = tl.load(odd + o_y * WORDS + word, mask=m_y)
            tl.store(line + o_x * WORDS + word, tl.reshape(tl.join(b_even, b_odd), [2 * BLOCK]), mask=m_x)
        else:
            b_x = tl.load(line + o_x * WORDS + word, mask=m_x)
            b_even, b_odd = tl.split(tl.reshape(b_x, [BLOCK, 2]))
            tl.store(even + o_y * WORDS + word, b_even, mask=m_y)
            tl.store(odd + o_y * WORDS + word, b_odd, mask=m_y)


@cached_launch
@triton.jit(do_not_specialize=["pixels", "width", "units", "blocks"])
def _pixels(
    y,  # [B h, w, 4C]
    x,  # [B h, 2, w, 2, C]
    pixels,  # B h w
    width,  # w
    units,  # C / UNIT
    blocks,
    UNIT: tl.constexpr,  # what the channels are a multiple of
    FACTOR: tl.constexpr,
    INVERSE: tl.constexpr,
    WORDS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channels = units * UNIT
    i_pixels, i_channels = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    first = i_pixels * PIXELS
    o_channel = i_channels * CHANNELS + tl.arange(0, CHANNELS)
    row = 2 * width * channels
    i_row = first // width
    o_column = (first - i_row * width).to(tl.int32) + tl.arange(0, PIXELS)
    o_line = (o_column // width).to(tl.int64) * 2 * row + o_column % width * 2 * channels
    line = x + i_row * 2 * row * WORDS + o_line[:, None] * WORDS
    m_pixel = tl.arange(0, PIXELS) < pixels - first
    mask = m_pixel[:, None] & (o_channel < channels)[None, :]
    o_x00 = o_channel[None, :] * WORDS
    o_x01, o_x10 = o_x00 + channels * WORDS, o_x00 + row * WORDS
    o_x11 = o_x10 + channels * WORDS
    out = y + (first + tl.arange(0, PIXELS))[:, None] * 4 * channels * WORDS
    o_woven = 4 * i_channels * CHANNELS + tl.arange(0, 4 * CHANNELS)
    m_woven = m_pixel[:, None] & (o_woven < 4 * channels)[None, :]
    for word in tl.static_range(WORDS):
        if INVERSE:
            if FACTOR:
                b_x00 = tl.load(out + o_x00 + word, mask=mask)
                b_x11 = tl.load(out + o_x00 + channels * WORDS + word, mask=mask)
                b_x01 = tl.load(out + o_x00 + 2 * channels * WORDS + word, mask=mask)
                b_x10 = tl.load(out + o_x00 + 3 * channels * WORDS + word, mask=mask)
            else:
                b_y = tl.load(out + o_woven[None, :] * WORDS + word, mask=m_woven)
                b_x0, b_x1 = tl.split(tl.reshape(b_y, [PIXELS, CHANNELS, 2, 2]))
                b_x00, b_x10 = tl.split(b_x0)
                b_x01, b_x11 = tl.split(b_x1)
            tl.store(line + o_x00 + word, b_x00, mask=mask)
            tl.store(line + o_x01 + word, b_x01, mask=mask)
            tl.store(line + o_x10 + word, b_x10, mask=mask)
            tl.store(line + o_x11 + word, b_x11, mask=mask)
        else:
            b_x00 = tl.load(line + o_x00 + word, mask=mask)
            b_x01 = tl.load(line + o_x01 + word, mask=mask)
            b_x10 = tl.load(line + o_x10 + word, mask=mask)
            b_x11 = tl.load(line + o_x11 + word, mask=mask)
            if FACTOR:
                tl.store(out + o_x00 + word, b_x00, mask=mask)
                tl.store(out + o_x00 + channels * WORDS + word, b_x11, mask=mask)
                tl.store(out + o_x00 + 2 * channels * WORDS + word, b_x01, mask=mask)
                tl.store(out + o_x00 + 3 * channels * WORDS + word, b_x10, mask=mask)
            else:
                b_y = tl.join(tl.join(b_x00, b_x10), tl.join(b_x01, b_x11))
                b_y = tl.reshape(b_y, [PIXELS, 4 * CHANNELS])
                tl.store(out + o_woven[None, :] * WORDS + word, b_y, mask=m_woven)


def squeeze(
    out: Tensor,  # y [B, 4C, h, w], or x [B, C, 2h, 2w] if inverse
    given: Tensor,  # x, or y if inverse
    batch: int,
    channels: int,
    height: int,
    width: int,
    factor: bool,
    last: bool,
    inverse: bool,
) -> None:
    """Move each 2x2 block of pixels of x into channels of y, or back; ``height`` and ``width`` are those of y."""
    y, x = (given, out) if inverse else (out, given)
    if x.numel() == 0:
        return
    words = max(x.element_size() // 8, 1)
    y, x = _integers(y), _integers(x)
    if last:
        size = 16 // x.element_size()
        b_channels = min(triton.next_power_of_2(channels), MAX_CHANNELS)
        b_pixels = max(BLOCK // 2 // b_channels, 1)
        pixels, blocks = batch * height * width, triton.cdiv(channels, b_channels)
        unit = math.gcd(channels, size)
        grid = (triton.cdiv(pixels, b_pixels) * blocks,)
        _pixels[grid](
            y, x, pixels, width, channels // unit, blocks, unit, factor, inverse, words, b_pixels, b_channels,
            num_warps=WARPS,
        )  # fmt: skip
    else:
        plane = height * width
        block = BLOCK if plane > BLOCK // 8 else BLOCK // 8
        blocks = triton.cdiv(plane, block)
        _lines[(batch * channels * 2 * blocks,)](
            y, x, channels, 2 * width, plane, blocks, factor, inverse, words, block,
            num_warps=max(WARPS * block // BLOCK, 1),
        )  # fmt: skip


def _integers(x: Tensor) -> Tensor:
    """The same memory as integers; an entry of 16 bytes is complex, and two of them."""
    if x.element_size() == 16:
        return torch.view_as_real(x).view(torch.int64)
    return x.view(INTEGERS[x.element_size()])
