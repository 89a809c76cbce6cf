"""Work that does not depend on one another, at once on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Branches:
    """A CUDA stream for each of several pieces of work, which one graph may capture; elsewhere they take turns.

    Each branch sees what was done before it on the stream around it, which sees what the branches did after
    :meth:`join`. Small stages of a flow leave most of a GPU idle, and share nothing.

    Args:
        device: of the work.
        count: of the branches.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(count)] if device.type == "cuda" else []

    @contextmanager
    def branch(self, i: int) -> Iterator[None]:
        """What is launched inside goes to branch i."""
        if not self.streams:
            yield
            return
        self.streams[i].wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.streams[i]):
            yield

    def join(self) -> None:
        """Go on after all branches."""
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)
