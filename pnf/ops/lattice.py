"""The lattice of 8-bit images; the compiled twin of :mod:`pnf.reference.lattice`.

Both gradients are those of the reference: images need none in training.
"""

from collections.abc import Callable

from torch import Tensor

from pnf.ops._layout import dense, dense_as, empty, empty_like, runs, scaled
from pnf.ops._library import DTYPES, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference import haar
from pnf.reference import lattice as reference

__all__ = ["lattice_merge", "lattice_split"]


@documented_by(reference.lattice_split)
def lattice_split(
    x: Tensor,  # [..., 2n, ...]
    levels: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    haar.check_split("lattice_split", x, dim)
    reference.check_levels("lattice_split", levels)
    coarser, pairs = _split(x, levels, dim)
    return coarser, pairs


@documented_by(reference.lattice_merge)
def lattice_merge(
    coarser: Tensor,  # [..., n, ...]
    pairs: Tensor,  # [..., 2n, ...]
    levels: int,
    dim: int,
) -> Tensor:
    reference.check_merge("lattice_merge", coarser, pairs, dim)
    reference.check_levels("lattice_merge", levels)
    x: Tensor = _merge(coarser, pairs, levels, dim)
    return x


def _compiled_split(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, levels: int, dim: int) -> tuple[Tensor, Tensor]:
        x, last = dense(x)
        coarser, pairs = empty(x, scaled(x.shape, dim, 1, 2), last), empty_like(x, last)
        launch((coarser, pairs, x), *runs(x, dim), levels, DTYPES[x.dtype])
        return coarser, pairs

    return run


def _compiled_merge(launch: Launch) -> Callable[..., Tensor]:
    def run(coarser: Tensor, pairs: Tensor, levels: int, dim: int) -> Tensor:
        coarser, last = dense(coarser)
        x = empty(coarser, pairs.shape, last)
        launch((x, coarser, dense_as(pairs, last)), *runs(x, dim), levels, DTYPES[x.dtype])
        return x

    return run


def _fake_split(x: Tensor, levels: int, dim: int) -> tuple[Tensor, Tensor]:
    last = dense(x)[1]
    return empty(x, scaled(x.shape, dim, 1, 2), last), empty_like(x, last)


def _fake_merge(coarser: Tensor, pairs: Tensor, levels: int, dim: int) -> Tensor:
    return empty(coarser, pairs.shape, dense(coarser)[1])


_split = register(
    "lattice",
    "lattice_split(Tensor x, int levels, int dim) -> (Tensor, Tensor)",
    reference=reference.lattice_split,
    fake=_fake_split,
    kernels=kernels(_compiled_split, cpp=cpp("lattice_split"), triton=triton("lattice", "lattice_split")),
)
_merge = register(
    "lattice",
    "lattice_merge(Tensor coarser, Tensor pairs, int levels, int dim) -> Tensor",
    reference=reference.lattice_merge,
    fake=_fake_merge,
    kernels=kernels(_compiled_merge, cpp=cpp("lattice_merge"), triton=triton("lattice", "lattice_merge")),
)
