"""The device of these tests: the last GPU, or the CPU where tests/support/stand_in.py stands in for one."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensors import one_thread_and_one_seed as one_thread_and_one_seed
from tiny_runs import images as images
from tiny_runs import results as results
from tiny_runs import tiny as tiny
from torch import Tensor

STAND_IN = sys.modules.get("stand_in")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available() and STAND_IN is None:
        for item in (item for item in items if Path(__file__).parent in item.path.parents):
            item.add_marker(pytest.mark.skip(reason="no GPU; tests/test_stand_in.py runs it on a stand-in"))


@pytest.fixture
def device() -> str:
    """With several GPUs another one than the current one."""
    return "cpu" if STAND_IN else f"cuda:{torch.cuda.device_count() - 1}"


@pytest.fixture
def elsewhere() -> Callable[[Tensor], Tensor]:
    """Copies a tensor to another device."""
    return STAND_IN.elsewhere if STAND_IN else Tensor.cpu
