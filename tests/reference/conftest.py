"""Fixtures of the tests of reference ops."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> Iterator[None]:
    # Tensors this small are slower on two threads than on one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


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
