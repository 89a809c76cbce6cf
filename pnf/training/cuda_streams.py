"""Concurrent execution of independent work on CUDA streams."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Branches:
    """A CUDA stream for each of several branches of work. On other devices the branches take turns.

    A branch starts after all earlier work on the surrounding stream, which waits for the branches in :meth:`join`. One
    CUDA graph can capture them. Small stages of a flow are independent, and each leaves most of a GPU idle.

    Args:
        device: the device of the work.
        count: the number of branches.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(count)] if device.type == "cuda" else []

    @contextmanager
    def branch(self, i: int) -> Iterator[None]:
        """Launch the work of the context on branch i."""
        if not self.streams:
            yield
            return
        self.streams[i].wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.streams[i]):
            yield

    def join(self) -> None:
        """Let the surrounding stream wait for all branches."""
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)
