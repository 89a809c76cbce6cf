"""Whether a run fits into memory, told before it starts."""

import torch

from pnf.flows.peak_memory import peak_memory
from pnf.flows.realnvp import set_network_dtype
from pnf.training.build import build_flow, stage_inputs, stage_modules
from pnf.training.config import RunConfig, RunError
from pnf.training.hardware import free_memory

GIB = 2**30


def step_memory(config: RunConfig, channels: int) -> int:
    """The bytes of tensors that a run holds at once: weights, optimisers' states, averages, and a step of a stage."""

    def run() -> None:
        flow = build_flow(config, channels)
        held = [torch.empty_like(p) for p in flow.parameters() for _ in ("first moment", "second moment", "average")]
        if config.precision == "bf16":
            set_network_dtype(flow, torch.bfloat16)
        x = torch.rand(config.batch_size, channels, config.size, config.size)
        for stage, image in zip(stage_modules(flow), stage_inputs(flow, x), strict=True):
            stage.train()
            stage.log_prob(image).mean().backward()  # type: ignore[operator]
            flow.zero_grad()
        del held

    return peak_memory(run)


def check_memory(config: RunConfig, channels: int, accelerator: str) -> None:
    """Raise unless a run of these settings fits into the device; the accelerator is as Fabric takes it.

    Raises:
        RunError: it does not.
    """
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    needed, free = step_memory(config, channels), free_memory(torch.device("cuda" if cuda else "cpu"))
    if needed > free:
        conv = config.coupling == "conv" and config.memory == "plain"
        raise RunError(
            f"a step on {config.batch_size} images of {config.size}x{config.size} takes about {needed / GIB:.1f} GiB, "
            f"and {free / GIB:.1f} GiB are free: lower --batch-size, which --accumulate makes up for"
            + (", or choose --memory invertible" if conv else "")
        )
