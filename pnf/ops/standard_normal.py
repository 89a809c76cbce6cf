"""Log-density of the standard normal prior; the compiled twin of :mod:`pnf.reference.standard_normal`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pnf.ops._layout import cast, dense, empty_like, rows
from pnf.ops._library import DTYPES, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference._precision import wide
from pnf.reference.standard_normal import check_standard_normal
from pnf.reference.standard_normal import standard_normal as reference

__all__ = ["standard_normal"]


@documented_by(reference)
def standard_normal(
    z: Tensor,  # [B, ...]
) -> Tensor:
    check_standard_normal(z)
    return _standard_normal(z)


def _compiled(launch: Launch) -> Callable[..., Tensor]:
    def run(z: Tensor) -> Tensor:
        z, _ = dense(z)
        out = z.new_empty(z.shape[0], dtype=wide(z.dtype))
        launch((out, z), *rows(z), DTYPES[z.dtype])
        return out

    return run


def _compiled_backward(launch: Launch) -> Callable[..., Tensor]:
    def run(grad: Tensor, z: Tensor) -> Tensor:
        z, last = dense(z)
        out = empty_like(z, last)
        launch((out, cast(grad, wide(z.dtype)).contiguous(), z), *rows(z), DTYPES[z.dtype])
        return out

    return run


def _reference_backward(grad: Tensor, z: Tensor) -> Tensor:
    return (-grad.view(-1, *(1,) * (z.dim() - 1)) * z).to(z.dtype)


def _fake(z: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], dtype=wide(z.dtype))


def _fake_backward(grad: Tensor, z: Tensor) -> Tensor:
    return empty_like(z, dense(z)[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(backward: Callable[..., Any], ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (backward(grad, *ctx.saved_tensors),)


_standard_normal = register(
    "standard_normal",
    "standard_normal(Tensor z) -> Tensor",
    reference=reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("standard_normal"), triton=triton("standard_normal", "standard_normal")),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad, Tensor z) -> Tensor",
        call=_differentiate,
        reference=_reference_backward,
        fake=_fake_backward,
        kernels=kernels(
            _compiled_backward,
            cpp=cpp("standard_normal_backward"),
            triton=triton("standard_normal", "standard_normal_backward"),
        ),
    ),
)
