"""The table of ops that a flow calls. The module that binds the flow provides it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class _HaarSplit(Protocol):
    def __call__(self, x: Tensor, /, dim: int) -> tuple[Tensor, Tensor]: ...


class _HaarMerge(Protocol):
    def __call__(self, s: Tensor, d: Tensor, dim: int) -> Tensor: ...


class _HaarBoundedSplit(Protocol):
    def __call__(self, x: Tensor, gamma: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]: ...


class _HaarBoundedMerge(Protocol):
    def __call__(self, s: Tensor, u: Tensor, gamma: Tensor, dim: int) -> tuple[Tensor, Tensor]: ...


class _LatticeSplit(Protocol):
    def __call__(self, x: Tensor, /, levels: int, dim: int) -> tuple[Tensor, Tensor]: ...


class _LatticeMerge(Protocol):
    def __call__(self, coarser: Tensor, pairs: Tensor, levels: int, dim: int) -> Tensor: ...


class _ActNorm(Protocol):
    def __call__(self, x: Tensor, /, shift: Tensor, log_scale: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]: ...


class _AffineCoupling(Protocol):
    def __call__(
        self, x: Tensor, /, raw: Tensor, scale: Tensor, log_det: Tensor, mask: str | None = None, parity: int = 0
    ) -> tuple[Tensor, Tensor]: ...


class _BatchNorm(Protocol):
    def __call__(
        self,
        x: Tensor,
        log_det: Tensor,
        mean: Tensor | None = None,
        var: Tensor | None = None,
        eps: float = 1e-4,
        mask: str | None = None,
        parity: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


class _MaskApply(Protocol):
    def __call__(self, x: Tensor, mask: str, parity: int) -> Tensor: ...


class _MaskPack(Protocol):
    def __call__(self, x: Tensor, mask: str, parity: int) -> tuple[Tensor, Tensor]: ...


class _MaskUnpack(Protocol):
    def __call__(self, kept: Tensor, rest: Tensor, mask: str, parity: int, size: Sequence[int]) -> Tensor: ...


class _Squeeze(Protocol):
    def __call__(self, x: Tensor, /, order: str = "plain") -> Tensor: ...


class _StandardNormal(Protocol):
    def __call__(self, z: Tensor) -> Tensor: ...


class _Logit(Protocol):
    def __call__(self, x: Tensor, /, alpha: float) -> tuple[Tensor, Tensor]: ...


def check_bound(flow: object) -> None:
    """Raise TypeError unless the class of the flow has its ops. The classes of :mod:`pnf.flows` have none."""
    kind = type(flow)
    if not hasattr(kind, "ops"):
        name = kind.__name__
        raise TypeError(f"{kind.__module__}.{name} has no ops: use pnf.{name}, or pnf.reference.{name}")


class OpTable(NamedTuple):
    """One implementation of every op that flows use, as module-level functions, so that models can be pickled."""

    haar_split: _HaarSplit
    haar_merge: _HaarMerge
    haar_bounded_split: _HaarBoundedSplit
    haar_bounded_merge: _HaarBoundedMerge
    lattice_split: _LatticeSplit
    lattice_merge: _LatticeMerge
    act_norm: _ActNorm
    act_norm_inverse: _ActNorm
    affine_coupling: _AffineCoupling
    affine_coupling_inverse: _AffineCoupling
    batch_norm: _BatchNorm
    mask_apply: _MaskApply
    mask_pack: _MaskPack
    mask_unpack: _MaskUnpack
    squeeze: _Squeeze
    squeeze_inverse: _Squeeze
    standard_normal: _StandardNormal
    logit: _Logit
    logit_inverse: _Logit
