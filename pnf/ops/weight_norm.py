"""Weight normalisation of a whole network in one call; the compiled twin of :mod:`pnf.reference.weight_norm`.

On a GPU it is CUDA C++ and not Triton, because a CUDA kernel can take a table of pointers by value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import dense, dense_as, empty_like
from pnf.ops._library import DTYPES, Backward, Launch, cpp, cuda, documented_by, kernels, register
from pnf.reference._precision import at_least, wide
from pnf.reference.weight_norm import LEAST_SQUARE, check_weight_norm
from pnf.reference.weight_norm import weight_norm as reference

__all__ = ["weight_norm"]


@documented_by(reference)
def weight_norm(
    directions: Sequence[Tensor],  # [O, ...] each
    magnitudes: Sequence[Tensor | None],  # [O, 1, ...] each
) -> list[Tensor]:
    check_weight_norm(directions, magnitudes)
    return _weight_norm(list(directions), *given(magnitudes))


def given(magnitudes: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """The magnitudes without gaps, and 1 or 0 for each layer, since ``torch.jit.trace`` takes no None in a list."""
    return [m for m in magnitudes if m is not None], [int(m is not None) for m in magnitudes]


def placed(magnitudes: Sequence[Tensor], scaled: Sequence[int]) -> list[Tensor | None]:
    """Invert :func:`given`: the magnitude of each layer, or None."""
    left = iter(magnitudes)
    return [next(left) if has_one else None for has_one in scaled]


def filled(magnitudes: Sequence[Tensor], scaled: Sequence[int], others: Sequence[Tensor]) -> list[Tensor]:
    """The magnitude of each layer, or a tensor that the kernels ignore."""
    found = placed(magnitudes, scaled)
    return [other if m is None else m.contiguous() for m, other in zip(found, others, strict=True)]


def _compiled(launch: Launch) -> Callable[..., list[Tensor]]:
    def run(directions: Sequence[Tensor], magnitudes: Sequence[Tensor], scaled: Sequence[int]) -> list[Tensor]:
        laid_out = [dense(direction) for direction in directions]
        weights = [empty_like(x, last) for x, last in laid_out]
        directions = [x for x, _ in laid_out]
        if directions:
            tensors = (*weights, *directions, *filled(magnitudes, scaled, directions))
            launch(tensors, _sizes(directions, scaled), DTYPES[directions[0].dtype])
        return weights

    return run


def _compiled_backward(launch: Launch) -> Callable[..., list[Tensor]]:
    def run(
        grads: Sequence[Tensor], directions: Sequence[Tensor], magnitudes: Sequence[Tensor], scaled: Sequence[int]
    ) -> list[Tensor]:
        laid_out = [dense(direction) for direction in directions]
        directions = [x for x, _ in laid_out]
        grads = [dense_as(grad, last) for grad, (_, last) in zip(grads, laid_out, strict=True)]
        found = [empty_like(x, last) for x, last in laid_out]
        found_magnitudes = [empty_like(m) for m in magnitudes]
        if directions:
            outputs = (*found, *filled(found_magnitudes, scaled, found))
            tensors = (*outputs, *grads, *directions, *filled(magnitudes, scaled, directions))
            launch(tensors, _sizes(directions, scaled), DTYPES[directions[0].dtype])
        return found + found_magnitudes

    return run


def _sizes(directions: Sequence[Tensor], scaled: Sequence[int]) -> list[int]:
    """(rows, length of a row, whether there is a magnitude) for every layer, in one list."""
    sizes: list[int] = []
    for x, has_one in zip(directions, scaled, strict=True):
        rows = x.shape[0]
        sizes += [rows, x.numel() // max(rows, 1), has_one]
    return sizes


def _reference(directions: Sequence[Tensor], magnitudes: Sequence[Tensor], scaled: Sequence[int]) -> list[Tensor]:
    return reference(directions, placed(magnitudes, scaled))


def _reference_backward(
    grads: Sequence[Tensor], directions: Sequence[Tensor], magnitudes: Sequence[Tensor], scaled: Sequence[int]
) -> list[Tensor]:
    found, found_magnitudes = [], []
    for grad, direction, magnitude in zip(grads, directions, placed(magnitudes, scaled), strict=True):
        dtype = wide(direction.dtype)
        g, x = grad.to(dtype), direction.to(dtype)
        dims = tuple(range(1, x.dim()))
        square = x.square().sum(dims, keepdim=True) if dims else x.square()
        along = (g * x).sum(dims, keepdim=True) if dims else g * x
        inverse = at_least(square, LEAST_SQUARE).rsqrt()
        scale = inverse if magnitude is None else magnitude.to(dtype) * inverse
        # Below its least value, the norm is a constant.
        through = torch.where(square >= LEAST_SQUARE, along * inverse * inverse, 0)
        found.append((scale * (g - through * x)).to(direction.dtype))
        if magnitude is not None:
            found_magnitudes.append((along * inverse).to(direction.dtype))
    return found + found_magnitudes


def _fake(directions: Sequence[Tensor], magnitudes: Sequence[Tensor], scaled: Sequence[int]) -> list[Tensor]:
    return [empty_like(x, dense(x)[1]) for x in directions]


def _fake_backward(
    grads: Sequence[Tensor], directions: Sequence[Tensor], magnitudes: Sequence[Tensor], scaled: Sequence[int]
) -> list[Tensor]:
    return [empty_like(x, dense(x)[1]) for x in directions] + [empty_like(m) for m in magnitudes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    directions, magnitudes, ctx.scaled = inputs
    ctx.save_for_backward(*directions, *magnitudes)


def _differentiate(
    backward: Callable[..., Any], ctx: Any, grads: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], None]:
    saved, layers = ctx.saved_tensors, len(grads)
    found = backward(grads, list(saved[:layers]), list(saved[layers:]), ctx.scaled)
    return found[:layers], found[layers:], None


_weight_norm = register(
    "weight_norm",
    "weight_norm(Tensor[] directions, Tensor[] magnitudes, int[] scaled) -> Tensor[]",
    reference=_reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("weight_norm"), cuda=cuda("weight_norm")),
    setup_context=_save,
    backward=Backward(
        "(Tensor[] grads, Tensor[] directions, Tensor[] magnitudes, int[] scaled) -> Tensor[]",
        call=_differentiate,
        reference=_reference_backward,
        fake=_fake_backward,
        kernels=kernels(_compiled_backward, cpp=cpp("weight_norm_backward"), cuda=cuda("weight_norm_backward")),
    ),
)
