"""Independent work, concurrent on a GPU and sequential elsewhere, with the same results."""

import pytest
import torch

from pnf.training.cuda_streams import Branches


def test_branches_start_after_what_came_before_and_end_before_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            done.append((self.name, "waits for", other.name))

        def __enter__(self) -> None:
            done.append(self.name)

        def __exit__(self, *_: object) -> None:
            done.append("around")

    names, around = iter(["first", "second"]), Stream("around")
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream(next(names)))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: around)
    branches = Branches(torch.device("cuda"), 2)
    with branches.branch(1):
        done.append("work")
    assert done == [("second", "waits for", "around"), "second", "work", "around"]
    branches.join()
    assert done[4:] == [("around", "waits for", "first"), ("around", "waits for", "second")]


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
