"""Fixtures of the tests of reference ops."""

from collections.abc import Callable

import pytest
import torch
from tensors import one_thread_and_one_seed as one_thread_and_one_seed
from torch import Tensor


@pytest.fixture
def log_abs_det() -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """``log |det df/dx|`` of each example of a batch, from the whole Jacobian."""

    def of(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        each = []
        for i in range(x.shape[0]):
            jacobian = torch.autograd.functional.jacobian(f, x[i : i + 1])
            each.append(torch.linalg.slogdet(jacobian.reshape(x[0].numel(), x[0].numel())).logabsdet)
        return torch.stack(each)

    return of
