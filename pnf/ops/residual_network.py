"""The residual network of a convolutional coupling in evaluation; the compiled twin of its reference.

Where images are small, networks are small, and most of the time would pass between ops. So on a CPU the whole network
is one op, which folds weight normalisation, and batch normalisation after a convolution, into the convolutions.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pnf.ops._layout import dense, empty
from pnf.ops._library import KERNELS, Launch, cpp, documented_by, kernels, register
from pnf.ops.convolution import filter_has_kernel, filter_sizes
from pnf.ops.weight_norm import filled, given, placed
from pnf.reference.residual_network import check_residual_network
from pnf.reference.residual_network import residual_network as reference
from pnf.reference.residual_network import run_blocks as run_blocks

__all__ = ["residual_network"]

Tensors = Sequence[Tensor]

LINE = 16
"""Floats of a cache line. Buffers in the scratch memory are padded to a multiple of it."""


@documented_by(reference)
def residual_network(
    h: Tensor,  # [B, hidden, H, W]
    directions: Tensors,  # [O, I, h, w] each
    magnitudes: Sequence[Tensor | None],  # [O, 1, 1, 1] each
    biases: Tensors,  # [O] each
    norms: Tensors,  # [hidden] each
    eps: float = 1e-4,
) -> Tensor:
    check_residual_network(h, directions, magnitudes, biases, norms)
    return _residual_network(h, list(directions), *given(magnitudes), list(biases), list(norms), eps)


def _compiled(launch: Launch) -> Callable[..., Tensor]:
    def run(
        h: Tensor,
        directions: Tensors,
        magnitudes: Tensors,
        scaled: Sequence[int],
        biases: Tensors,
        norms: Tensors,
        eps: float,
    ) -> Tensor:
        if h.dtype != torch.float32 or not h.numel() or not all(map(filter_has_kernel, directions)):
            return KERNELS["residual_network"]["reference"](h, directions, magnitudes, scaled, biases, norms, eps)
        h = h.contiguous(memory_format=torch.channels_last)
        weights, sizes, scratch = [], [], 4 * _rounded(h)
        for direction, has_one in zip(directions, scaled, strict=True):
            weight, last = dense(direction)
            weights.append(weight)
            sizes += [*filter_sizes(weight, last), has_one]
            scratch += _rounded(weight)
        y = empty(h, _shape(h, directions), True)
        others = [x.contiguous() for x in (*biases, *norms)]
        batch, _, height, width = h.shape
        tensors = (y, h.new_empty(scratch), h, *weights, *filled(magnitudes, scaled, weights), *others)
        launch(tensors, sizes, batch, height, width, eps)
        return y

    return run


def _rounded(x: Tensor) -> int:
    return -x.numel() // LINE * -LINE


def _shape(h: Tensor, directions: Tensors) -> Sequence[int]:
    return h.shape[0], directions[-1].shape[0], *h.shape[2:]


def _reference(
    h: Tensor,
    directions: Tensors,
    magnitudes: Tensors,
    scaled: Sequence[int],
    biases: Tensors,
    norms: Tensors,
    eps: float,
) -> Tensor:
    return reference(h, directions, placed(magnitudes, scaled), biases, norms, eps)


def _fake(
    h: Tensor,
    directions: Tensors,
    magnitudes: Tensors,
    scaled: Sequence[int],
    biases: Tensors,
    norms: Tensors,
    eps: float,
) -> Tensor:
    return empty(h, _shape(h, directions), True)


_residual_network = register(
    "residual_network",
    "residual_network(Tensor h, Tensor[] directions, Tensor[] magnitudes, int[] scaled, Tensor[] biases,"
    " Tensor[] norms, float eps) -> Tensor",
    reference=_reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("residual_network")),
)
