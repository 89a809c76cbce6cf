"""The S / Δ / ⊕ wavelet transforms; the compiled twin of :mod:`pnf.reference.haar`.

The registered ops take a factor, 1/2 for the analysis and 1 for the synthesis. So each is linear and has the other as
its transpose, and they are each other's derivatives to any order.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pnf.ops._layout import dense, dense_as, empty, runs, scaled
from pnf.ops._library import DTYPES, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference import haar as reference
from pnf.reference._precision import widen

__all__ = ["haar_merge", "haar_pyramid", "haar_pyramid_inverse", "haar_split"]

LEVELS = 3
"""The number of levels of a pyramid in one pass over memory."""


@documented_by(reference.haar_split)
def haar_split(
    x: Tensor,  # [..., 2n, ...]
    dim: int,
) -> tuple[Tensor, Tensor]:
    reference.check_split("haar_split", x, dim)
    return _split(x, dim, 0.5)


@documented_by(reference.haar_merge)
def haar_merge(
    s: Tensor,  # [..., n, ...]
    d: Tensor,  # [..., n, ...]
    dim: int,
) -> Tensor:
    reference.check_merge("haar_merge", s, d, "d", dim)
    return _merge(s, d, dim, 1.0)


@documented_by(reference.haar_pyramid)
def haar_pyramid(
    x: Tensor,  # [..., H, W] or [..., D]
    levels: int,
    axes: str = "xy",
) -> tuple[Tensor, list[Tensor]]:
    reference.check_pyramid("haar_pyramid", x, levels, axes)
    details: list[Tensor] = []
    while levels:
        x, *coarser = _pyramid(x, min(levels, LEVELS), axes, 0.5)
        details = coarser + details
        levels -= min(levels, LEVELS)
    return x, details


@documented_by(reference.haar_pyramid_inverse)
def haar_pyramid_inverse(
    base: Tensor,  # [..., h, w] or [..., d]
    details: Sequence[Tensor],
    axes: str = "xy",
) -> Tensor:
    reference.check_pyramid_inverse("haar_pyramid_inverse", base, details, axes)
    details = list(details)
    levels = len(details) // len(axes)
    while levels:
        # The finest levels are the largest, so they share a pass.
        now = (levels - 1) % LEVELS + 1
        base = _pyramid_inverse([base, *details[: now * len(axes)]], axes, 1.0)
        details = details[now * len(axes) :]
        levels -= now
    return _merge(base, details[0], _dim(axes[0]), 1.0) if details else base


def _compiled_split(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, dim: int, factor: float) -> tuple[Tensor, Tensor]:
        x, last = dense(x)
        shape = scaled(x.shape, dim, 1, 2)
        s, d = empty(x, shape, last), empty(x, shape, last)
        launch((s, d, x), *runs(x, dim), factor, DTYPES[x.dtype])
        return s, d

    return run


def _compiled_merge(launch: Launch) -> Callable[..., Tensor]:
    def run(s: Tensor, d: Tensor, dim: int, factor: float) -> Tensor:
        s, last = dense(s)
        x = empty(s, scaled(s.shape, dim, 2), last)
        launch((x, s, dense_as(d, last)), *runs(x, dim), factor, DTYPES[s.dtype])
        return x

    return run


def _compiled_pyramid(launch: Launch) -> Callable[..., list[Tensor]]:
    def run(x: Tensor, levels: int, axes: str, factor: float) -> list[Tensor]:
        x, last = dense(x)
        parts = [empty(x, shape, last) for shape in _shapes(x, levels, axes)]
        launch((*_padded(parts), x), *_image(x, last, axes, levels), factor, DTYPES[x.dtype])
        return parts

    return run


def _compiled_pyramid_inverse(launch: Launch) -> Callable[..., Tensor]:
    def run(parts: Sequence[Tensor], axes: str, factor: float) -> Tensor:
        base, last = dense(parts[0])
        x = empty(base, _shape(parts, axes), last)
        parts = [base, *(dense_as(d, last) for d in parts[1:])]
        launch((x, *_padded(parts)), *_image(x, last, axes, (len(parts) - 1) // len(axes)), factor, DTYPES[x.dtype])
        return x

    return run


def _dim(axis: str) -> int:
    return -1 if axis == "x" else -2


def _shapes(x: Tensor, levels: int, axes: str) -> list[list[int]]:
    """The shapes of a pyramid's base and details, coarse first."""
    shape, details = list(x.shape), []
    for axis in axes[::-1] * levels:
        shape[_dim(axis)] //= 2
        details.append(list(shape))
    return [shape, *details[::-1]]


def _shape(parts: Sequence[Tensor], axes: str) -> list[int]:
    """The shape of the image of a pyramid's parts."""
    return scaled(parts[-1].shape, _dim(axes[-1]), 2)


def _padded(parts: Sequence[Tensor]) -> list[Tensor]:
    """The base, then the details, finest first, padded for the kernels, which ignore the padding."""
    base, *details = parts
    return [base, *details[::-1], *[base] * (2 * LEVELS - len(details))]


def _image(x: Tensor, last: bool, axes: str, levels: int) -> tuple[int, int, int, int, int]:
    """(rows, width, inner, levels, order), where x is [rows, width, inner] in memory, for csrc/cpu/haar.h."""
    width, inner = x.shape[-1], 1
    if last and x.dim() == 3:
        # The height is the dim of the channels, which are the width in memory.
        width, axes = x.shape[1], axes.translate({ord("x"): "y", ord("y"): "x"})
    elif last:
        inner = x.shape[1]
    rows = x.numel() // (width * inner) if width else 0
    if axes == "x":
        return 1, rows * width, inner, levels, 0
    if axes == "y":
        return 1, rows, width * inner, levels, 0
    return rows, width, inner, levels, 1 if axes == "xy" else 2


def _reference_split(x: Tensor, dim: int, factor: float) -> tuple[Tensor, Tensor]:
    s, d = _halves(x, dim, factor)
    return s.to(x.dtype), d.to(x.dtype)


def _reference_merge(s: Tensor, d: Tensor, dim: int, factor: float) -> Tensor:
    return _whole(widen(s), widen(d), dim, factor).to(s.dtype)


def _reference_pyramid(x: Tensor, levels: int, axes: str, factor: float) -> list[Tensor]:
    s, details = widen(x), []
    for axis in axes[::-1] * levels:
        s, d = _halves(s, _dim(axis), factor)
        details.append(d)
    return [part.to(x.dtype) for part in (s, *details[::-1])]


def _reference_pyramid_inverse(parts: Sequence[Tensor], axes: str, factor: float) -> Tensor:
    x, *details = map(widen, parts)
    for i, d in enumerate(details):
        x = _whole(x, d, _dim(axes[i % len(axes)]), factor)
    return x.to(parts[0].dtype)


def _halves(x: Tensor, dim: int, factor: float) -> tuple[Tensor, Tensor]:
    x0, x1 = reference.pairs(x, dim)
    return factor * (x0 + x1), factor * (x0 - x1)


def _whole(s: Tensor, d: Tensor, dim: int, factor: float) -> Tensor:
    return reference.interleave(factor * (s + d), factor * (s - d), dim)


def _fake_split(x: Tensor, dim: int, factor: float) -> tuple[Tensor, Tensor]:
    last, shape = dense(x)[1], scaled(x.shape, dim, 1, 2)
    return empty(x, shape, last), empty(x, shape, last)


def _fake_merge(s: Tensor, d: Tensor, dim: int, factor: float) -> Tensor:
    return empty(s, scaled(s.shape, dim, 2), dense(s)[1])


def _fake_pyramid(x: Tensor, levels: int, axes: str, factor: float) -> list[Tensor]:
    last = dense(x)[1]
    return [empty(x, shape, last) for shape in _shapes(x, levels, axes)]


def _fake_pyramid_inverse(parts: Sequence[Tensor], axes: str, factor: float) -> Tensor:
    return empty(parts[0], _shape(parts, axes), dense(parts[0])[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.others = inputs[1:]


def _save_merge(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.others = inputs[2:]


def _save_pyramid_inverse(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    parts, axes, factor = inputs
    ctx.others = (len(parts) - 1) // len(axes), axes, factor


def _split_backward(ctx: Any, s: Tensor, d: Tensor) -> tuple[Tensor, None, None]:
    return _merge(s, d, *ctx.others), None, None


def _merge_backward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, None, None]:
    s, d = _split(x, *ctx.others)
    return s, d, None, None


def _pyramid_backward(ctx: Any, parts: list[Tensor]) -> tuple[Tensor, None, None, None]:
    _, axes, factor = ctx.others
    return _pyramid_inverse(parts, axes, factor), None, None, None


def _pyramid_inverse_backward(ctx: Any, x: Tensor) -> tuple[list[Tensor], None, None]:
    return _pyramid(x, *ctx.others), None, None


_split = register(
    "haar",
    "haar_split(Tensor x, int dim, float factor) -> (Tensor, Tensor)",
    reference=_reference_split,
    fake=_fake_split,
    kernels=kernels(_compiled_split, cpp=cpp("haar_split"), triton=triton("haar", "haar_split")),
    setup_context=_save,
    backward=_split_backward,
)
_merge = register(
    "haar",
    "haar_merge(Tensor s, Tensor d, int dim, float factor) -> Tensor",
    reference=_reference_merge,
    fake=_fake_merge,
    kernels=kernels(_compiled_merge, cpp=cpp("haar_merge"), triton=triton("haar", "haar_merge")),
    setup_context=_save_merge,
    backward=_merge_backward,
)
_pyramid = register(
    "haar",
    "haar_pyramid(Tensor x, int levels, str axes, float factor) -> Tensor[]",
    reference=_reference_pyramid,
    fake=_fake_pyramid,
    kernels=kernels(_compiled_pyramid, cpp=cpp("haar_pyramid"), triton=triton("haar", "haar_pyramid")),
    setup_context=_save,
    backward=_pyramid_backward,
)
_pyramid_inverse = register(
    "haar",
    "haar_pyramid_inverse(Tensor[] parts, str axes, float factor) -> Tensor",
    reference=_reference_pyramid_inverse,
    fake=_fake_pyramid_inverse,
    kernels=kernels(
        _compiled_pyramid_inverse,
        cpp=cpp("haar_pyramid_inverse"),
        triton=triton("haar", "haar_pyramid_inverse"),
    ),
    setup_context=_save_pyramid_inverse,
    backward=_pyramid_inverse_backward,
)
