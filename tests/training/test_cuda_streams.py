"""Independent work, concurrent on a GPU and sequential elsewhere, with the same results."""

import pytest
import torch

from pnf.training.cuda_streams import Branches

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("name", DEVICES)
def test_branches_see_what_came_before_and_are_seen_after(name: str) -> None:
    device = torch.device(name)
    branches, x = Branches(device, 3), torch.arange(1 << 16, device=device, dtype=torch.float64)
    for _ in range(20):
        x, parts = x + 1, []
        for i in range(3):
            with branches.branch(i):
                parts.append((x * (i + 1)).cumsum(0))
        branches.join()
        x = x + sum(parts)[-1:] * 0
    expected = torch.arange(1 << 16, dtype=torch.float64) + 20
    assert x.cpu().equal(expected)
    assert len(branches.streams) == (3 if name == "cuda" else 0)
