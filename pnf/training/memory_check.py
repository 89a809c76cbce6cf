"""Whether a run fits into memory, told before it starts."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pnf.flows.peak_memory import peak_memory
from pnf.flows.realnvp import set_network_dtype
from pnf.training import processes
from pnf.training.build import build_flow, stage_inputs, stage_modules
from pnf.training.config import RunConfig, RunError
from pnf.training.hardware import free_memory

GIB = 2**30


def step_memory(config: RunConfig, channels: int, at_once: bool = False) -> int:
    """The bytes of tensors that a run holds at once: weights, optimisers' states, averages, and a step of a stage.

    With ``at_once`` a step of all stages: on a GPU they run side by side, and PyTorch's memory is of one stream each.
    """

    def run() -> None:
        flow = build_flow(config, channels)
        held = [torch.empty_like(p) for p in flow.parameters() for _ in ("first moment", "second moment", "average")]
        if config.precision == "bf16":
            set_network_dtype(flow, torch.bfloat16)
        x = torch.rand(config.batch_size, channels, config.size, config.size)
        losses: Iterable[Tensor] = (
            stage.train().log_prob(image).mean()  # type: ignore[operator]
            for stage, image in zip(stage_modules(flow), stage_inputs(flow, x), strict=True)
        )
        for loss in list(losses) if at_once else losses:
            loss.backward()
            flow.zero_grad()
        del held

    return peak_memory(run)


def check_memory(config: RunConfig, channels: int, accelerator: str) -> None:
    """Raise unless a run of these settings fits into the device; the accelerator is as Fabric takes it.

    Raises:
        RunError: it does not, or this machine has more processes than GPUs.
    """
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    needed = step_memory(config, channels, at_once=cuda)
    free = free_memory(processes.gpu() if cuda else torch.device("cpu"))
    if needed > free:
        conv = config.coupling == "conv" and config.memory == "plain"
        raise RunError(
            f"a step on {config.batch_size} images of {config.size}x{config.size} takes about {needed / GIB:.1f} GiB, "
            f"and {free / GIB:.1f} GiB are free: lower --batch-size, which --accumulate makes up for"
            + (", or choose --memory invertible" if conv else "")
        )
