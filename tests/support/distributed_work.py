"""The work of each process in a test of DistributedDataParallel. Spawned processes import it by name."""

import os
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from pnf import fast

PROCESSES, BATCHES = 3, (4, 1, 0)


def flow() -> fast.ProgressiveFlow:
    torch.manual_seed(0)
    return fast.ProgressiveFlow((1, 8, 8), 1, coupling="dense", hidden=8, blocks=1, num_couplings=2).train()


def batch(rank: int) -> torch.Tensor:
    return torch.rand(BATCHES[rank], 1, 8, 8, generator=torch.Generator().manual_seed(rank))


def work(rank: int, port: int, folder: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    wrapped = DistributedDataParallel(flow())
    adam = torch.optim.Adam(wrapped.parameters(), 1e-3)
    for step in range(3):
        z, log_det = wrapped(batch(rank))
        if step == 0:
            torch.save(wrapped.module.state_dict(), Path(folder) / f"start{rank}.pt")
        adam.zero_grad()
        (z.square().sum() / 2 - log_det.sum()).backward()
        adam.step()
    torch.save(wrapped.module.state_dict(), Path(folder) / f"end{rank}.pt")
    distributed.destroy_process_group()
