"""ActNorm, its inverse and their backward."""

from collections.abc import Callable

import pytest
import torch
from racing import every_implementation, every_pass

CALLS = [
    *(((16, 12, 16, 16), layout) for layout in (torch.contiguous_format, torch.channels_last)),
    *(((64, 12, 64, 64), layout) for layout in (torch.contiguous_format, torch.channels_last)),
    *((shape, torch.contiguous_format) for shape in [(128, 256), (128, 512)]),
]


@every_implementation
@every_pass
@pytest.mark.parametrize("op", ["act_norm", "act_norm_inverse"])
@pytest.mark.parametrize(("shape", "layout"), CALLS, ids=str)
def test_act_norm(
    race: Callable[..., None],
    implementation: str,
    passes: str,
    op: str,
    shape: tuple[int, ...],
    layout: torch.memory_format,
    device: str,
) -> None:
    x = torch.randn(shape, device=device).contiguous(memory_format=layout)
    parameters = [torch.randn(n, device=device) for n in (shape[1], shape[1], shape[0])]
    race(
        implementation,
        passes,
        op,
        lambda functions: lambda *args: getattr(functions, op)(*args),
        [x, *parameters],
        saved=1,
    )
