"""A user's own DistributedDataParallel around a flow."""

import socket
from pathlib import Path

import torch
from distributed_work import PROCESSES, batch, flow, work
from torch import multiprocessing


def test_all_processes_start_and_stay_alike(tmp_path: Path) -> None:
    """ActNorm starts from the batches of all processes, one of them empty, like one process from their union."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(tmp_path)), PROCESSES)
    for name in ("start", "end"):
        first, *others = (torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(PROCESSES))
        for other in others:
            for key, tensor in first.items():
                torch.testing.assert_close(other[key], tensor, rtol=0, atol=0)
    alone = flow()
    alone(torch.cat([batch(rank) for rank in range(PROCESSES)]))
    first = torch.load(tmp_path / "start0.pt")
    for key, tensor in alone.state_dict().items():
        torch.testing.assert_close(first[key], tensor, rtol=1e-4, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
