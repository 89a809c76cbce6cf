"""The network of a dense coupling, 256 wide, as in the second and the last stage of the mnist-dense preset."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from racing import every_implementation, every_pass
from torch import Tensor

HIDDEN = 256


@every_implementation
@every_pass
@pytest.mark.parametrize("sizes", [(128, 32, 64, 64), (128, 256, 512, 512)], ids=str)
def test_dense_network(
    race: Callable[..., None], implementation: str, passes: str, sizes: tuple[int, ...], device: str
) -> None:
    batch, kept, others, outputs = sizes
    shapes = [(o, i) for i, o in pairwise([kept + others, HIDDEN, HIDDEN, outputs])]
    weights = [torch.randn(shape, device=device) / shape[1] ** 0.5 for shape in shapes]
    biases = [torch.randn(o, device=device) for o, _ in shapes]
    x, condition = torch.randn(batch, kept, device=device), torch.randn(batch, others, device=device)

    def make(functions: Any) -> Callable[..., Tensor]:
        return lambda x, condition, *p: functions.dense_network(x, condition, p[:3], p[3:])

    race(implementation, passes, "dense_network", make, [x, condition, *weights, *biases], saved=1)
