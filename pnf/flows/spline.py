"""Monotone rational-quadratic splines, which map each entry on its own.

Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows" (2019), section 3.1.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

BOUND = 4.0
"""The spline maps ``[-BOUND, BOUND]`` to itself. Other values stay as they are."""

LEAST = 1e-3
"""The least width and height of a bin, as a share of the interval, and the least slope at a knot."""

MOST = 100.0
"""The largest slope at a knot. Between steeper ones, float32 could not find the root."""

_SLOPE_ONE = math.log(math.expm1(1 - LEAST))


def spline_outputs(bins: int) -> int:
    """The number of parameters of the spline of one entry: widths, heights, and the slopes between the bins."""
    return 3 * bins - 1 if bins else 0


def spline(
    x: Tensor,  # [B, C, *size]
    raw: Tensor,  # [B, C * (3 * bins - 1), *size]
    bins: int,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:  # as x, [B]
    """Map each entry by a spline of its own, and return ``log |det dy/dx|``, of the inverse if that is asked for.

    In a bin of width w, height h and slope ``s = h / w``, with slopes a and b at its ends and
    ``t = (x - x0) / w`` from 0 to 1::

        y = y0 + h (s t^2 + a t (1 - t)) / (s + (a + b - 2 s) t (1 - t))

    Widths and heights are softmaxes of the raw values, slopes a softplus. Raw values of 0 are the identity. Slopes at
    knots are from 0.001 to 100, and no bin is narrower or lower than 0.001 of the interval, so float32 can invert the
    map.
    """
    parts = raw.to(x.dtype).unflatten(1, (x.shape[1], spline_outputs(bins)))
    widths, heights, slopes = parts.split((bins, bins, bins - 1), 2)
    one = torch.ones_like(parts[:, :, :1])
    knots_x, knots_y = _knots(widths, one), _knots(heights, one)
    slopes = torch.cat((one, LEAST + softplus(slopes + _SLOPE_ONE).clamp(max=MOST), one), 2)

    given = x.clamp(-BOUND, BOUND).unsqueeze(2)
    bin_ = (given >= (knots_y if inverse else knots_x)[:, :, 1:-1]).sum(2, keepdim=True)

    def at(values: Tensor, offset: int = 0) -> Tensor:
        return values.gather(2, bin_ + offset).squeeze(2)

    x0, y0, a, b = at(knots_x), at(knots_y), at(slopes), at(slopes, 1)
    width, height = at(knots_x, 1) - x0, at(knots_y, 1) - y0
    slope = height / width
    bend = a + b - 2 * slope
    given = given.squeeze(2)
    if inverse:
        # The root of p t^2 + q t = r in [0, 1], of two forms the one whose terms have the same sign.
        rise = given - y0
        p, q, r = height * (slope - a) + rise * bend, height * a - rise * bend, slope * rise
        total = q.abs() + (q * q + 4 * p * r).clamp(min=0).sqrt()
        t = torch.where(q < 0, total, 2 * r) / torch.where(q < 0, 2 * p, total)
    else:
        t = (given - x0) / width
    t = t.clamp(0, 1)
    across = t * (1 - t)
    below = slope + bend * across
    y = x0 + width * t if inverse else y0 + height * (slope * t * t + a * across) / below
    log_slope = 2 * (slope / below).log() + (b * t * t + 2 * slope * across + a * (1 - t) ** 2).log()
    inside = x.abs() < BOUND
    log_det = torch.where(inside, -log_slope if inverse else log_slope, 0).flatten(1).sum(1)
    return torch.where(inside, y, x), log_det


def _knots(raw: Tensor, one: Tensor) -> Tensor:
    """The ``bins + 1`` knots from -BOUND to BOUND, from the raw sizes of bins, along dim 2."""
    bins = raw.shape[2]
    shares = LEAST + (1 - LEAST * bins) * raw.softmax(2)
    return BOUND * torch.cat((-one, 2 * shares[:, :, :-1].cumsum(2) - 1, one), 2)
