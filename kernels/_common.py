"""What the kernels share."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def wide(b_x):
    """At least float32, in which everything is computed."""
    return b_x.to(tl.float64 if b_x.dtype == tl.float64 else tl.float32)


def plain(n: int) -> int:
    """An integer for an argument of a kernel that is the same code for every n, and takes :func:`value` of it.

    Triton compiles a kernel again where an integer is 1 or a multiple of 16. This one never is.
    """
    return 2 * n + 3


@triton.jit
def value(n):
    """The integer that :func:`plain` was given."""
    return (n >> 1) - 1


@triton.jit
def exp(b_x):
    """The exponential, in float32 within about a unit in the last place, by the polynomial of csrc/cpu/math.h.

    A GPU's own, ``exp2`` of a rounded product, loses as many bits as x has before its point.
    """
    if b_x.dtype == tl.float64:
        b_exp = tl.exp(b_x)
    else:
        b_x = tl.maximum(b_x, -104.0, propagate_nan=tl.PropagateNan.ALL)
        b_x = tl.minimum(b_x, 89.0, propagate_nan=tl.PropagateNan.ALL)
        # Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        b_shifted = b_x * 1.44269504088896341 + 12582912.0
        b_n = b_shifted - 12582912.0
        b_r = b_x - b_n * 0.693359375 + b_n * 2.12194440e-4
        b_2 = b_r * b_r
        b_p = (b_r * 1.9875691500e-4 + 1.3981999507e-3) * b_2 + (b_r * 8.3334519073e-3 + 4.1665795894e-2)
        b_p = (b_p * b_2 + (b_r * 1.6666665459e-1 + 5.0000001201e-1)) * b_2 + b_r
        # In two steps, since 2^n may be out of range where exp(x) is not.
        b_power = b_shifted.to(tl.int32, bitcast=True) - 0x4B400000
        b_half = b_power >> 1
        b_first = ((b_half + 127) << 23).to(tl.float32, bitcast=True)
        b_exp = (1.0 + b_p) * b_first * ((b_power - b_half + 127) << 23).to(tl.float32, bitcast=True)
    return b_exp


@triton.jit
def log(b_x):
    """The logarithm of a positive number that is no denormal, NaN or an infinity; by a polynomial as :func:`exp`."""
    if b_x.dtype == tl.float64:
        b_log = tl.log(b_x)
    else:
        # The fraction is taken to [sqrt(1/2), sqrt(2)).
        b_bits = b_x.to(tl.int32, bitcast=True) - 0x3F3504F3
        b_e = (b_bits >> 23).to(tl.float32)
        b_f = ((b_bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
        b_2 = b_f * b_f
        b_p = b_2 * 7.0376836292e-2 + (1.1676998740e-1 - b_f * 1.1514610310e-1)
        b_p = b_p * b_2 + (1.4249322787e-1 - b_f * 1.2420140846e-1)
        b_p = b_p * b_2 + (2.0000714765e-1 - b_f * 1.6668057665e-1)
        b_p = b_p * b_2 + (3.3333331174e-1 - b_f * 2.4999993993e-1)
        b_log = b_p * b_f * b_2 - b_e * 2.12194440e-4 - b_2 * 0.5 + b_f + b_e * 0.693359375
        b_log = tl.where(b_x < float("inf"), b_log, b_x)
    return b_log


@triton.jit
def divide(b_x, b_y):
    """The quotient, rounded to the nearest; a GPU's own errs by up to two units in float32."""
    b_quotient = b_x / b_y if b_y.dtype == tl.float64 else tl.div_rn(b_x, b_y)
    return b_quotient


@triton.jit
def sqrt(b_x):
    """The square root, rounded to the nearest; a GPU's own is not in float32."""
    b_root = tl.sqrt(b_x) if b_x.dtype == tl.float64 else tl.sqrt_rn(b_x)
    return b_root


@triton.jit
def on_board(o_site, width, parity):
    """Whether a checkerboard keeps a site."""
    o_row = o_site // width
    return ((o_row + o_site - o_row * width) & 1) == parity


@triton.jit
def tanh(b_u):
    """The hyperbolic tangent and its slope, 1 minus its square, by one exp that cannot overflow; neither cancels."""
    b_a = tl.abs(b_u)
    b_e = exp(-2.0 * b_a)
    b_q = divide(b_e, 1.0 + b_e)
    b_2 = b_u * b_u
    if b_u.dtype == tl.float64:
        b_p = (b_2 * -9.64399179425052238628e-1 - 9.92877231001918586564e1) * b_2 - 1.61468768441708447952e3
        b_d = (b_2 + 1.12811678491632931402e2) * b_2 + 2.23548839060100448583e3
        b_p = b_p / (b_d * b_2 + 4.84406305325125486048e3)
    else:
        b_p = b_2 * -5.70498872745e-3 + 2.06390887954e-2
        b_p = b_p * b_2 - 5.37397155531e-2
        b_p = b_p * b_2 + 1.33314422036e-1
        b_p = b_p * b_2 - 3.33332819422e-1
    b_large = tl.where(b_u < 0.0, 2.0 * b_q - 1.0, 1.0 - 2.0 * b_q)
    return tl.where(b_a < 0.625, b_p * b_2 * b_u + b_u, b_large), 4.0 * b_q * (1.0 - b_q)


@triton.jit
def sum_of(x, n, BLOCK: tl.constexpr):
    """The sum of n entries, in float64."""
    b_sum = tl.zeros((BLOCK,), tl.float64)
    for i in range(0, n, BLOCK):
        o_x = i + tl.arange(0, BLOCK)
        b_sum += tl.load(x + o_x, mask=o_x < n, other=0.0).to(tl.float64)
    return tl.sum(b_sum, 0)


@triton.jit
def _probe(x):
    tl.store(x, tl.load(x) + 1.0)


def probe(x: Tensor) -> None:
    """Compile, load and launch a kernel: an error says that no other would run on the device of x, either."""
    _probe[(1,)](x)


def add_parts(
    out: Tensor,  # [rows]
    parts: Tensor,  # [rows, n]
) -> None:
    """``out = sum(parts)``: the end of a sum over rows that more than one program shares."""
    torch.sum(parts, 1, out=out)
