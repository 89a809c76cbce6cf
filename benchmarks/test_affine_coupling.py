"""The affine coupling, its inverse and their backward."""

from collections.abc import Callable

import pytest
import torch
from racing import every_implementation, every_pass

CALLS = [
    *((shape, mask) for shape in [(64, 12, 64, 64), (64, 12, 16, 16)] for mask in (None, "checkerboard", "channel")),
    ((8, 4, 8, 8), "checkerboard"),
    ((128, 512), None),
]


@every_implementation
@every_pass
@pytest.mark.parametrize("op", ["affine_coupling", "affine_coupling_inverse"])
@pytest.mark.parametrize(("shape", "mask"), CALLS, ids=str)
def test_affine_coupling(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    op: str,
    shape: tuple[int, ...],
    mask: str | None,
    device: str,
) -> None:
    transformed = shape[1] // 2 if mask == "channel" else shape[1]
    x = torch.randn(shape, device=device)
    raw = torch.randn(shape[0], 2 * transformed, *shape[2:], device=device)
    scale, log_det = torch.rand(transformed, device=device), torch.randn(shape[0], device=device)
    race(
        implementation,
        passes,
        op,
        lambda functions: lambda *args: getattr(functions, op)(*args, mask),
        [x, raw, scale, log_det],
        # The backward reads x and u. The backward of the inverse also reads the shift.
        saved=1 if op.endswith("inverse") else (x.numel() + raw.numel() / 2) / (x.numel() + raw.numel()),
    )
