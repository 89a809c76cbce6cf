"""The processes of a run under ``torchrun``, and their communication. Without it there is one process."""

import atexit
import inspect
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from pnf.training.config import RunError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""The time after which a process takes the others for lost. They communicate in every step."""


def rank() -> int:
    """The number of this process. Process 0 writes all files."""
    return _environment("RANK", 0)


def size() -> int:
    """The number of processes."""
    return _environment("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return _environment("LOCAL_RANK", 0)


def gpu() -> torch.device:
    """Return the GPU of this process.

    Raises:
        RunError: this machine has more processes than GPUs.
    """
    number, count = local_rank(), torch.cuda.device_count()
    if number >= count:
        raise RunError(
            f"every process needs a GPU, and this machine has {count}: start no more processes, or train with "
            "--device cpu"
        )
    return torch.device("cuda", number)


def restarted() -> bool:
    """Whether torchrun has restarted the processes after one of them failed."""
    return _environment("TORCHELASTIC_RESTART_COUNT", 0) > 0


def make_fabric(accelerator: str, **settings: Any) -> "Fabric":
    """Make the engine over all processes, each with one device."""
    # Lightning takes seconds to import, and only training needs it.
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    if size() == 1:
        return Fabric(accelerator=accelerator, devices=1, **settings)
    atexit.register(_leave)
    local = _environment("LOCAL_WORLD_SIZE", 1)
    # StageTrainer combines running statistics once a step. PyTorch has renamed the option.
    names = inspect.signature(DistributedDataParallel).parameters
    option: Any = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
    strategy = DDPStrategy(timeout=PATIENCE, **option)
    return Fabric(accelerator=accelerator, devices=local, num_nodes=size() // local, strategy=strategy, **settings)


def reduce(fabric: "Fabric", value: Tensor, how: Literal["sum", "mean", "min", "max"]) -> Tensor:
    """The sum, mean, minimum or maximum of a tensor over the processes."""
    result: Any = fabric.all_reduce(value.clone(), reduce_op=how)
    return cast("Tensor", result)


def gather(value: T) -> list[T]:
    """Return the values of all processes in order, on each of them."""
    if size() == 1:
        return [value]
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=PATIENCE)
        atexit.register(_leave)
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, value)
    return found


def gather_parts(own: Mapping[int, T]) -> list[T]:
    """Return the parts of all processes in the order of their numbers, on each of them."""
    parts = {number: part for found in gather(own) for number, part in found.items()}
    return [parts[number] for number in sorted(parts)]


def lost(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _leave() -> None:
    # Otherwise a thread of Gloo may release its last tensor after the interpreter has ended, and abort the process.
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _environment(name: str, default: int) -> int:
    # Other launchers set the same variables for independent processes.
    return int(os.environ.get(name, default)) if distributed.is_torchelastic_launched() else default
