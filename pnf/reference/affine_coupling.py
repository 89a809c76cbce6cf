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
    """Transform the entries outside a mask: ``y = x exp(s) + shift``, ``s = scale * tanh(u)``, ``log_det + sum(s)``.

    ``K`` is the number of transformed channels: ``C`` without a mask and under a checkerboard, ``C / 2`` under a
    channel mask. ``raw`` holds the shift in its first K channels and u in the others.

    Args:
        x: ``[B, C, *spatial]``, floating.
        raw: ``[B, 2 K, *spatial]``, floating. Under a checkerboard its entries at kept sites have no effect.
        scale: ``[K]``, floating, the bound of the log-scale of each transformed channel.
        log_det: ``[B]`` in nats. The log-determinant is added to it.
        mask: ``None`` (all entries are transformed), ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half of the mask to keep.

    Returns:
        ``y`` of the shape and dtype of x, and ``log_det`` ``[B]`` in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the mask or the parity is unknown, or the shapes do not fit together.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x, raw, scale = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8), torch.ones(4)
        >>> y, log_det = ops.affine_coupling(x, raw, scale, torch.zeros(2), "checkerboard")
        >>> torch.equal(y[:, :, ::2, ::2], x[:, :, ::2, ::2])  # kept
        True
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
    """Invert :func:`affine_coupling`: ``x = (y - shift) exp(-s)``, ``log_det - sum(s)``.

    Args:
        y: ``[B, C, *spatial]``, floating.
        raw, scale, log_det, mask, parity: as for :func:`affine_coupling`.

    Returns:
        ``x`` of the shape and dtype of y, and ``log_det`` ``[B]`` in float32 or wider.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: the mask or the parity is unknown, or the shapes do not fit together.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x, raw, scale = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.ones(2)
        >>> y, log_det = ops.affine_coupling(x, raw, scale, torch.zeros(2), "channel")
        >>> back, log_det = ops.affine_coupling_inverse(y, raw, scale, log_det, "channel")
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(log_det, torch.zeros(2), atol=1e-3)
        (True, True)
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
