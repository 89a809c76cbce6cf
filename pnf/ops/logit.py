"""The logit preprocessing of pixels; the compiled twin of :mod:`pnf.reference.logit`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import cast, dense, dense_as, empty_like, rows
from pnf.ops._library import DTYPES, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference._precision import at_least, wide
from pnf.reference.logit import BOUNDARY, check_logit
from pnf.reference.logit import logit as reference
from pnf.reference.logit import logit_inverse as reference_inverse

__all__ = ["logit", "logit_inverse"]


@documented_by(reference)
def logit(
    x: Tensor,  # [B, ...]
    alpha: float,
) -> tuple[Tensor, Tensor]:
    check_logit("logit", x, alpha)
    return _logit(x, alpha)


@documented_by(reference_inverse)
def logit_inverse(
    y: Tensor,  # [B, ...]
    alpha: float,
) -> tuple[Tensor, Tensor]:
    check_logit("logit_inverse", y, alpha)
    return _inverse(y, alpha)


def _compiled(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        x, last = dense(x)
        out = empty_like(x, last)
        log_det = x.new_empty(x.shape[0], dtype=wide(x.dtype))
        launch((out, log_det, x), *rows(x), alpha, DTYPES[x.dtype])
        return out, log_det

    return run


def _compiled_backward(launch: Launch) -> Callable[..., Tensor]:
    def run(grad_out: Tensor, grad_log_det: Tensor, x: Tensor, alpha: float) -> Tensor:
        x, last = dense(x)
        out = empty_like(x, last)
        grad_log_det = cast(grad_log_det, wide(x.dtype)).contiguous()
        launch((out, dense_as(grad_out, last), grad_log_det, x), *rows(x), alpha, DTYPES[x.dtype])
        return out

    return run


def _reference_backward(grad_y: Tensor, grad_log_det: Tensor, x: Tensor, alpha: float) -> Tensor:
    """Return ``(grad_y + grad_log_det tanh(y / 2)) (1 - 2 alpha) (1 / p + 1 / q)``, without clamped terms."""
    slope, each = 1 - 2 * alpha, x.to(wide(x.dtype))
    free_p, free_q = alpha + slope * each, alpha + slope * (1 - each)
    p, q = at_least(free_p, BOUNDARY), at_least(free_q, BOUNDARY)
    grad = grad_y + _beside(grad_log_det, x) * ((p.log() - q.log()) / 2).tanh()
    inverse = torch.where(free_p < BOUNDARY, 0, q) + torch.where(free_q < BOUNDARY, 0, p)
    return (grad * (slope * (inverse / (p * q)))).to(x.dtype)


def _reference_inverse_backward(grad_x: Tensor, grad_log_det: Tensor, y: Tensor, alpha: float) -> Tensor:
    """Return ``grad_x sigmoid(y) sigmoid(-y) / (1 - 2 alpha) - grad_log_det tanh(y / 2)``."""
    each = y.to(wide(y.dtype))
    slope = each.sigmoid() * (-each).sigmoid() / (1 - 2 * alpha)
    return (grad_x * slope - _beside(grad_log_det, y) * (each / 2).tanh()).to(y.dtype)


def _beside(log_det: Tensor, x: Tensor) -> Tensor:
    return log_det.to(wide(x.dtype)).view(-1, *(1,) * (x.dim() - 1))


def _fake(x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    return empty_like(x, dense(x)[1]), x.new_empty(x.shape[0], dtype=wide(x.dtype))


def _fake_backward(grad_out: Tensor, grad_log_det: Tensor, x: Tensor, alpha: float) -> Tensor:
    return empty_like(x, dense(x)[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.alpha = inputs
    ctx.save_for_backward(x)


def _differentiate(
    backward: Callable[..., Any], ctx: Any, grad_out: Tensor, grad_log_det: Tensor
) -> tuple[Tensor, None]:
    return backward(grad_out, grad_log_det, *ctx.saved_tensors, ctx.alpha), None


_logit = register(
    "logit",
    "logit(Tensor x, float alpha) -> (Tensor, Tensor)",
    reference=reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("logit"), triton=triton("logit", "logit", inverse=False)),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_y, Tensor grad_log_det, Tensor x, float alpha) -> Tensor",
        call=_differentiate,
        reference=_reference_backward,
        fake=_fake_backward,
        kernels=kernels(
            _compiled_backward,
            cpp=cpp("logit_backward"),
            triton=triton("logit", "logit_backward", inverse=False),
        ),
    ),
)

_inverse = register(
    "logit",
    "logit_inverse(Tensor y, float alpha) -> (Tensor, Tensor)",
    reference=reference_inverse,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("logit_inverse"), triton=triton("logit", "logit", inverse=True)),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_x, Tensor grad_log_det, Tensor y, float alpha) -> Tensor",
        call=_differentiate,
        reference=_reference_inverse_backward,
        fake=_fake_backward,
        kernels=kernels(
            _compiled_backward,
            cpp=cpp("logit_inverse_backward"),
            triton=triton("logit", "logit_backward", inverse=True),
        ),
    ),
)
