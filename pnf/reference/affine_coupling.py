"""Affine coupling with a bounded log-scale and its log-determinant.

A conditioner network emits ``raw = (shift, u)``; the transformed entries become ``y = x exp(s) + shift`` with
``s = scale * tanh(u)``, and the log-determinant gains ``sum(s)``.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), equations 4 to 8.
"""

import torch
from torch import Tensor

from pnf.reference._checks import check_floating
from pnf.reference._precision import wide
from pnf.reference.masking import check_mask, kept_entries, mask_apply


def affine_coupling(
    x: Tensor,  # [B, C, *spatial]
    raw: Tensor,  # [B, 2 K, *spatial]
    scale: Tensor,  # [K]
    log_det: Tensor,  # [B]
    mask: str | None = None,
    parity: int = 0,
) -> tuple[Tensor, Tensor]:
    """``y = x exp(s) + shift`` on the transformed entries, ``s = scale * tanh(u)``, ``log_det + sum(s)``.

    ``K`` is the number of transformed channels: ``C`` without a mask and under a checkerboard, ``C / 2`` under a
    channel mask. ``raw`` holds the shift in its first K channels and u in the others.

    Args:
        x: ``[B, C, *spatial]``, floating.
        raw: ``[B, 2 K, *spatial]``, floating; under a checkerboard its entries at kept sites have no effect.
        scale: ``[K]``, the bound of the log-scale of each transformed channel.
        log_det: ``[B]``, in nats, to which the log-determinant is added.
        mask: ``None`` (all entries are transformed), ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half of the mask that is kept.

    Returns:
        ``y, log_det``: of the shape and dtype of x; ``[B]`` in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: an unknown mask or parity, or shapes that do not belong together.
    """
    check_affine_coupling("affine_coupling", x, raw, scale, log_det, mask, parity)
    moved, shift, s = _transformed(x, raw, scale, mask, parity)
    y = _put_back(moved * s.exp() + shift, x, mask, parity)
    return y.to(x.dtype), log_det + _transformed_sum(s, mask, parity)


def affine_coupling_inverse(
    y: Tensor,  # [B, C, *spatial]
    raw: Tensor,  # [B, 2 K, *spatial]
    scale: Tensor,  # [K]
    log_det: Tensor,  # [B]
    mask: str | None = None,
    parity: int = 0,
) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`affine_coupling`: ``x = (y - shift) exp(-s)``, ``log_det - sum(s)``.

    Args:
        y: ``[B, C, *spatial]``, floating.
        raw, scale, log_det, mask, parity: as for :func:`affine_coupling`.

    Returns:
        ``x, log_det``: of the shape and dtype of y; ``[B]`` in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: an unknown mask or parity, or shapes that do not belong together.
    """
    check_affine_coupling("affine_coupling_inverse", y, raw, scale, log_det, mask, parity)
    moved, shift, s = _transformed(y, raw, scale, mask, parity)
    x = _put_back((moved - shift) * (-s).exp(), y, mask, parity)
    return x.to(y.dtype), log_det - _transformed_sum(s, mask, parity)


def check_affine_coupling(
    op: str, x: Tensor, raw: Tensor, scale: Tensor, log_det: Tensor, mask: str | None, parity: int
) -> None:
    """Raise the errors that the coupling documents."""
    for name, tensor in (("x", x), ("raw", raw), ("scale", scale), ("log_det", log_det)):
        check_floating(op, name, tensor)
    if mask is not None:
        check_mask(op, x, mask, parity)
    elif x.dim() < 2:
        raise ValueError(f"{op}: x must be [B, C, ...], got {list(x.shape)}")
    batch, channels = x.shape[:2]
    transformed = channels // 2 if mask == "channel" else channels
    if raw.shape != (batch, 2 * transformed, *x.shape[2:]):
        want = [batch, 2 * transformed, *x.shape[2:]]
        raise ValueError(
            f"{op}: raw must be {want}, the shift and u of each transformed channel, got {list(raw.shape)}"
        )
    if scale.shape != (transformed,):
        raise ValueError(f"{op}: scale must be [{transformed}], got {list(scale.shape)}")
    if log_det.shape != (batch,):
        raise ValueError(f"{op}: log_det must be [{batch}], got {list(log_det.shape)}")


def _transformed(x: Tensor, raw: Tensor, scale: Tensor, mask: str | None, parity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The transformed channels, their shift and their log-scale, in float32 or wider."""
    if mask == "channel":
        x = x.chunk(2, 1)[1 - parity]
    dtype = wide(x.dtype)
    shift, u = raw.to(dtype).chunk(2, 1)
    return x.to(dtype), shift, scale.to(dtype).view(-1, *(1,) * (x.dim() - 2)) * u.tanh()


def _put_back(transformed: Tensor, x: Tensor, mask: str | None, parity: int) -> Tensor:
    if mask is None:
        return transformed
    if mask == "channel":
        kept = x.chunk(2, 1)[parity].to(transformed.dtype)
        return torch.cat((transformed, kept) if parity else (kept, transformed), 1)
    return torch.where(kept_entries(x, mask, parity), x.to(transformed.dtype), transformed)


def _transformed_sum(s: Tensor, mask: str | None, parity: int) -> Tensor:
    if mask == "checkerboard":
        s = mask_apply(s, mask, 1 - parity)
    return s.flatten(1).sum(1)
