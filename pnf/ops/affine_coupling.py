"""Affine coupling in one pass over memory; the compiled twin of :mod:`pnf.reference.affine_coupling`.

The backward saves only the arguments. To compute tanh and exp again is cheaper than to read them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import cast, dense, dense_as, empty_like
from pnf.ops._library import DTYPES, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference import affine_coupling as reference
from pnf.reference import affine_coupling_inverse as reference_inverse
from pnf.reference._precision import wide
from pnf.reference.affine_coupling import check_affine_coupling
from pnf.reference.masking import kept_entries

__all__ = ["affine_coupling", "affine_coupling_inverse"]

MASKS = {None: 0, "checkerboard": 1, "channel": 2}
"""Numbers of the masks in csrc/cpu/affine_coupling.h."""

NATIVE = {(dtype, dtype) for dtype in DTYPES} | {(torch.float32, torch.bfloat16), (torch.float32, torch.float16)}
"""The dtypes of x and raw that kernels take. Any others are converted to the dtype of arithmetic."""


@documented_by(reference)
def affine_coupling(
    x: Tensor,  # [B, C, *spatial]
    raw: Tensor,  # [B, 2 K, *spatial]
    scale: Tensor,  # [K]
    log_det: Tensor,  # [B]
    mask: str | None = None,
    parity: int = 0,
) -> tuple[Tensor, Tensor]:
    check_affine_coupling("affine_coupling", x, raw, scale, log_det, mask, parity)
    return _forward(x, raw, scale, log_det, mask, parity)


@documented_by(reference_inverse)
def affine_coupling_inverse(
    y: Tensor,  # [B, C, *spatial]
    raw: Tensor,  # [B, 2 K, *spatial]
    scale: Tensor,  # [K]
    log_det: Tensor,  # [B]
    mask: str | None = None,
    parity: int = 0,
) -> tuple[Tensor, Tensor]:
    check_affine_coupling("affine_coupling_inverse", y, raw, scale, log_det, mask, parity)
    return _inverse(y, raw, scale, log_det, mask, parity)


def _geometry(x: Tensor, mask: str | None, parity: int, last: bool) -> tuple[int, int, int, int, int, int, bool]:
    """(batch, channels, height, width, mask, parity, whether the channels come last), the sizes for every kernel."""
    batch, channels, *size = x.shape
    height, width = size if len(size) == 2 else (1, math.prod(size))
    return batch, channels, height, width, MASKS[mask], parity, last


def _dtypes(x: Tensor, raw: Tensor, log_det: Tensor) -> int:
    return DTYPES[x.dtype] | DTYPES[raw.dtype] << 2 | DTYPES[log_det.dtype] << 4


def _compiled(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(
        x: Tensor, raw: Tensor, scale: Tensor, log_det: Tensor, mask: str | None, parity: int
    ) -> tuple[Tensor, Tensor]:
        dtype, arithmetic = x.dtype, wide(x.dtype)
        if (dtype, raw.dtype) not in NATIVE:
            x, raw = x.to(arithmetic), raw.to(arithmetic)
        x, last = dense(x)
        y = empty_like(x, last)
        log_det = cast(log_det, torch.promote_types(log_det.dtype, arithmetic)).contiguous()
        out = log_det.new_empty(log_det.shape)
        launch(
            (y, out, x, dense_as(raw, last), cast(scale, arithmetic).contiguous(), log_det),
            *_geometry(x, mask, parity, last),
            _dtypes(x, raw, log_det),
        )
        return cast(y, dtype), out

    return run


def _compiled_backward(launch: Launch) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(
        grad_y: Tensor, grad_log_det: Tensor, x: Tensor, raw: Tensor, scale: Tensor, mask: str | None, parity: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_dtype, raw_dtype, arithmetic = x.dtype, raw.dtype, wide(x.dtype)
        if (x_dtype, raw_dtype) not in NATIVE:
            x, raw = x.to(arithmetic), raw.to(arithmetic)
        x, last = dense(x)
        raw, grad_y = dense_as(raw, last), dense_as(cast(grad_y, x.dtype), last)
        grad_log_det, bound = cast(grad_log_det, arithmetic).contiguous(), cast(scale, arithmetic).contiguous()
        grad_x, grad_raw, grad_scale = (
            empty_like(x, last),
            empty_like(raw, last),
            bound.new_empty(bound.shape),
        )
        launch(
            (grad_x, grad_raw, grad_scale, grad_y, grad_log_det, x, raw, bound),
            *_geometry(x, mask, parity, last),
            _dtypes(x, raw, grad_log_det),
        )
        return cast(grad_x, x_dtype), cast(grad_raw, raw_dtype), cast(grad_scale, scale.dtype)

    return run


def _halves(x: Tensor, mask: str | None, parity: int) -> tuple[Tensor, Tensor]:
    """The transformed channels, and the kept ones. Under a checkerboard both are all channels."""
    if mask != "channel":
        return x, x
    halves = x.chunk(2, 1)
    return halves[1 - parity], halves[parity]


def _reference_backward(inverse: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(
        grad_y: Tensor, grad_log_det: Tensor, x: Tensor, raw: Tensor, scale: Tensor, mask: str | None, parity: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = wide(x.dtype)
        ones = (1,) * (x.dim() - 2)
        shift, u = raw.to(dtype).chunk(2, 1)
        bound, tanh = scale.to(dtype).view(-1, *ones), u.tanh()
        (moved, _), (grad, kept) = (_halves(tensor.to(dtype), mask, parity) for tensor in (x, grad_y))
        sign = -1 if inverse else 1
        grad_moved = grad * (sign * bound * tanh).exp()
        grad_shift = -grad_moved if inverse else grad
        change = moved - shift if inverse else moved
        grad_s = sign * (grad_moved * change + grad_log_det.to(dtype).view(-1, 1, *ones))
        grad_u, grad_bound = grad_s * bound * (1 - tanh.square()), grad_s * tanh
        if mask == "checkerboard":
            stay = kept_entries(x, mask, parity)
            grad_moved = torch.where(stay, grad, grad_moved)
            grad_shift, grad_u, grad_bound = (torch.where(stay, 0, part) for part in (grad_shift, grad_u, grad_bound))
        if mask == "channel":
            grad_moved = torch.cat((grad_moved, kept) if parity else (kept, grad_moved), 1)
        grad_raw = torch.cat((grad_shift, grad_u), 1)
        grad_scale = grad_bound.movedim(1, 0).flatten(1).sum(1)
        return grad_moved.to(x.dtype), grad_raw.to(raw.dtype), grad_scale.to(scale.dtype)

    return run


def _fake(
    x: Tensor, raw: Tensor, scale: Tensor, log_det: Tensor, mask: str | None, parity: int
) -> tuple[Tensor, Tensor]:
    out = log_det.new_empty(log_det.shape, dtype=torch.promote_types(log_det.dtype, wide(x.dtype)))
    return empty_like(x, dense(x)[1]), out


def _fake_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, raw: Tensor, scale: Tensor, mask: str | None, parity: int
) -> tuple[Tensor, Tensor, Tensor]:
    last = dense(x)[1]
    return empty_like(x, last), empty_like(raw, last), scale.new_empty(scale.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, raw, scale, log_det, ctx.mask, ctx.parity = inputs
    ctx.save_for_backward(x, raw, scale)
    ctx.log_det_dtype = log_det.dtype


def _differentiate(
    backward: Callable[..., Any], ctx: Any, grad_y: Tensor, grad_log_det: Tensor
) -> tuple[Tensor | None, ...]:
    grads = backward(grad_y, grad_log_det, *ctx.saved_tensors, ctx.mask, ctx.parity)
    return *grads, cast(grad_log_det, ctx.log_det_dtype), None, None


def _register(name: str, reference: Callable[..., Any], inverse: bool) -> Callable[..., Any]:
    return register(
        "affine_coupling",
        f"{name}(Tensor x, Tensor raw, Tensor scale, Tensor log_det, str? mask, int parity) -> (Tensor, Tensor)",
        reference=reference,
        fake=_fake,
        kernels=kernels(_compiled, cpp=cpp(name), triton=triton("affine_coupling", "affine_coupling", inverse=inverse)),
        setup_context=_save,
        backward=Backward(
            "(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor raw, Tensor scale, str? mask, int parity)"
            " -> (Tensor, Tensor, Tensor)",
            call=_differentiate,
            reference=_reference_backward(inverse),
            fake=_fake_backward,
            kernels=kernels(
                _compiled_backward,
                cpp=cpp(f"{name}_backward"),
                triton=triton("affine_coupling", "affine_coupling_backward", inverse=inverse),
            ),
        ),
    )


_forward = _register("affine_coupling", reference, inverse=False)
_inverse = _register("affine_coupling_inverse", reference_inverse, inverse=True)
