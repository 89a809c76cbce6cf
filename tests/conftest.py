"""Without a GPU, run Triton kernels under its interpreter, which must be set before their import.

With one, make PyTorch's convolutions exact, since results are compared within the rounding errors of float32.
"""

import os
import zlib

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
else:
    from pnf.training import exact_arithmetic

    exact_arithmetic()


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Give each test its own random numbers, the same in every run and order."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
