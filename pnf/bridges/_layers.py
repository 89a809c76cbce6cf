"""Layers that several libraries get: a coupling of any channels and the Haar transform of images."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pnf import ops
from pnf.flows.shapes import zero_log_det


class Coupling(nn.Module):
    """An affine coupling of channels: ``y = x exp(s) + shift`` on some of them, given the others.

    ``s = scale * tanh(u)``, where a network of the kept channels emits ``(shift, u)``.

    Args:
        kept: ``[C]``, True for each channel to keep.
        bound: the scale of all channels. By default each transformed channel learns its own, from 1.
    """

    kept: Tensor
    moved: Tensor

    def __init__(self, kept: Tensor, bound: float | None = None) -> None:
        super().__init__()
        channels = torch.arange(len(kept))
        # Which channels these are follows from the constructor's arguments, so no file needs to say it.
        self.register_buffer("kept", channels[kept], persistent=False)
        self.register_buffer("moved", channels[~kept], persistent=False)
        self.bound = bound
        self.scale = nn.Parameter(torch.ones(len(self.moved))) if bound is None else None
        self.parity: int | None = None
        for parity in (0, 1):
            if torch.equal(kept, (channels >= len(kept) // 2) == bool(parity)) and len(kept) % 2 == 0:
                self.parity = parity

    def forward(
        self,
        x: Tensor,  # [B, C, *spatial]
        network: Callable[[Tensor], Tensor],  # [B, kept, *spatial] -> [B, 2 * moved, *spatial]
        inverse: bool = False,
        log_det: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor]:
        """Return y, or x for y, and ``log_det`` plus that of this direction: ``[B]`` in nats."""
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        log_det = zero_log_det(x) if log_det is None else log_det
        # Made in each call, since a buffer of float32 would round it for float64.
        scale = self.scale if self.bound is None else log_det.new_full(self.moved.shape, self.bound)
        assert scale is not None
        if self.parity is not None:
            return op(x, network(x.chunk(2, 1)[self.parity]), scale, log_det, "channel", self.parity)
        y, log_det = op(x.index_select(1, self.moved), network(x.index_select(1, self.kept)), scale, log_det)
        return x.index_copy(1, self.moved, y), log_det


def haar(
    x: Tensor,  # [B, C, H, W]
    *,
    by_wavelet: bool = True,
) -> Tensor:  # [B, 4 C, H / 2, W / 2]
    """Split images into means and details of 2x2 pixels, as channels.

    ``a`` is the mean of four pixels, ``v`` and ``h`` half the difference of the means of columns and rows, ``d`` half
    the difference of the columns' half differences. The log-determinant is ``-log 2`` for each entry.

    Args:
        x: images with an even height and width.
        by_wavelet: whether the channels are ``a1 a2 ... v1 v2 ... h1 h2 ... d1 d2 ...`` or ``a1 v1 h1 d1 a2 ...``.
    """
    parts = (part for half in ops.haar_split(x, -2) for part in ops.haar_split(half, -1))
    return torch.cat(list(parts), 1) if by_wavelet else torch.stack(list(parts), 2).flatten(1, 2)


def haar_inverse(
    y: Tensor,  # [B, 4 C, h, w]
    *,
    by_wavelet: bool = True,
) -> Tensor:  # [B, C, 2 h, 2 w]
    """Invert :func:`haar`. The log-determinant is ``+log 2`` for each entry."""
    a, v, h, d = y.chunk(4, 1) if by_wavelet else y.unflatten(1, (-1, 4)).unbind(2)
    return ops.haar_merge(ops.haar_merge(a, v, -1), ops.haar_merge(h, d, -1), -2)


def haar_log_det(x: Tensor) -> float:
    """The log-determinant of :func:`haar`, in nats, the same for each image."""
    return -math.log(2) * math.prod(x.shape[1:])
