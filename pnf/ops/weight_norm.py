"""Weight normalisation of a whole network in one call; the compiled twin of :mod:`pnf.reference.weight_norm`.

On a GPU it is CUDA C++, and not Triton, because a kernel can be handed a table of pointers by value there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import dense, dense_as, empty_like, lay_out, wide
from pnf.ops._library import DTYPES, Kernel, Launch, cpp, cuda, documented_by, kernels, register, vjp
from pnf.reference.weight_norm import LEAST_SQUARE, check_weight_norm
from pnf.reference.weight_norm import weight_norm as reference

__all__ = ["weight_norm"]

Magnitudes = Sequence[Tensor | None]


@documented_by(reference)
def weight_norm(
    directions: Sequence[Tensor],  # [O, ...] each
    magnitudes: Magnitudes,  # [O, 1, ...] each
) -> list[Tensor]:
    check_weight_norm(directions, magnitudes)
    return _weight_norm(list(directions), list(magnitudes))


def _compiled(launch: Launch) -> Callable[..., list[Tensor]]:
    def run(directions: Sequence[Tensor], magnitudes: Magnitudes) -> list[Tensor]:
        laid_out = [dense(direction) for direction in directions]
        weights = [empty_like(x, last) for x, last in laid_out]
        directions = [x for x, _ in laid_out]
        if directions:
            tensors = (*weights, *directions, *given(magnitudes, directions))
            launch(tensors, _sizes(directions, magnitudes), DTYPES[directions[0].dtype])
        return weights

    return run


def _compiled_backward(launch: Launch) -> Callable[..., list[Tensor]]:
    def run(grads: Sequence[Tensor], directions: Sequence[Tensor], magnitudes: Magnitudes) -> list[Tensor]:
        laid_out = [dense(direction) for direction in directions]
        directions = [x for x, _ in laid_out]
        grads = [dense_as(grad, last) for grad, (_, last) in zip(grads, laid_out, strict=True)]
        found = [empty_like(x, last) for x, last in laid_out]
        found_magnitudes = [None if m is None else empty_like(m) for m in magnitudes]
        if directions:
            outputs = (*found, *given(found_magnitudes, found))
            tensors = (*outputs, *grads, *directions, *given(magnitudes, directions))
            launch(tensors, _sizes(directions, magnitudes), DTYPES[directions[0].dtype])
        return [*found, *(m for m in found_magnitudes if m is not None)]

    return run


def given(magnitudes: Magnitudes, others: Sequence[Tensor]) -> list[Tensor]:
    """The magnitudes, and where there is none a tensor that the kernels do not touch."""
    return [other if m is None else m.contiguous() for m, other in zip(magnitudes, others, strict=True)]


def _sizes(directions: Sequence[Tensor], magnitudes: Magnitudes) -> list[int]:
    """Rows, length of a row, and whether there is a magnitude, of every layer."""
    sizes: list[int] = []
    for x, magnitude in zip(directions, magnitudes, strict=True):
        rows = x.shape[0]
        sizes += [rows, x.numel() // max(rows, 1), magnitude is not None]
    return sizes


def _reference(directions: Sequence[Tensor], magnitudes: Magnitudes) -> list[Tensor]:
    weights = reference(directions, magnitudes)
    return [lay_out(weight, dense(x)[1]) for weight, x in zip(weights, directions, strict=True)]


def _reference_backward(grads: Sequence[Tensor], directions: Sequence[Tensor], magnitudes: Magnitudes) -> list[Tensor]:
    found, found_magnitudes = [], []
    for grad, direction, magnitude in zip(grads, directions, magnitudes, strict=True):
        dtype, last = wide(direction.dtype), dense(direction)[1]
        g, x = grad.to(dtype), direction.to(dtype)
        shape = (-1, *(1,) * (x.dim() - 1))
        square = x.square().flatten(1).sum(1).view(shape) if x.dim() > 1 else x.square()
        along = (g * x).flatten(1).sum(1).view(shape) if x.dim() > 1 else g * x
        inverse = square.clamp(min=LEAST_SQUARE).rsqrt()
        scale = inverse if magnitude is None else magnitude.to(dtype) * inverse
        # Below the least norm, the norm is a constant.
        through = torch.where(square >= LEAST_SQUARE, along * inverse * inverse, 0)
        found.append(lay_out((scale * (g - through * x)).to(direction.dtype), last))
        if magnitude is not None:
            found_magnitudes.append((along * inverse).to(direction.dtype))
    return found + found_magnitudes


def _fake(directions: Sequence[Tensor], magnitudes: Magnitudes) -> list[Tensor]:  # noqa: ARG001
    return [empty_like(x, dense(x)[1]) for x in directions]


def _fake_backward(
    grads: Sequence[Tensor],  # noqa: ARG001
    directions: Sequence[Tensor],
    magnitudes: Magnitudes,
) -> list[Tensor]:
    found = [empty_like(x, dense(x)[1]) for x in directions]
    return [*found, *(empty_like(m) for m in magnitudes if m is not None)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:  # noqa: ARG001
    directions, magnitudes = inputs
    ctx.given = [m is not None for m in magnitudes]
    ctx.save_for_backward(*directions, *(m for m in magnitudes if m is not None))


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    directions = ctx.saved_tensors[: len(grads)]
    magnitudes = iter(ctx.saved_tensors[len(grads) :])
    placed = [next(magnitudes) if given else None for given in ctx.given]
    found = _backward(list(grads), list(directions), placed)
    left = iter(found[len(grads) :])
    return *found[: len(grads)], *(next(left) if given else None for given in ctx.given)


def _kernels(name: str, implement: Callable[[Launch], Callable[..., Any]]) -> list[Kernel]:
    return kernels(implement, cpp=cpp(name), cuda=cuda(name))


_weight_norm = register(
    "weight_norm",
    "weight_norm(Tensor[] directions, Tensor?[] magnitudes) -> Tensor[]",
    reference=_reference,
    fake=_fake,
    backward=_differentiate,
    setup_context=_save,
    kernels=_kernels("weight_norm", _compiled),
)

_second, _save_second = vjp(_reference_backward)
_backward = register(
    "weight_norm",
    "weight_norm_backward(Tensor[] grads, Tensor[] directions, Tensor?[] magnitudes) -> Tensor[]",
    reference=_reference_backward,
    fake=_fake_backward,
    backward=_second,
    setup_context=_save_second,
    kernels=_kernels("weight_norm_backward", _compiled_backward),
)
