"""Random arguments, and the state in which they are drawn."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


def normal(*shape: int) -> Tensor:
    """Standard normal numbers, in float64."""
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread_and_one_seed() -> Iterator[None]:
    """Seeds a test, and keeps it on one thread: tensors this small are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
