"""Prediction of a run's peak memory. A run that will not fit is refused before it starts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from pnf.flows.peak_memory import LiveMemory, peak_memory
from pnf.flows.realnvp import set_network_dtype
from pnf.training import processes
from pnf.training.build import build_flow, example_shape, stage_inputs, stage_modules
from pnf.training.config import RunConfig, RunError
from pnf.training.hardware import free_memory

GIB = 2**30


def step_memory(
    config: RunConfig,
    channels: int,
    at_once: bool = False,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> int:
    """The peak of the bytes of a run's tensors: weights, optimiser states, averages, and a step of one stage.

    With ``at_once`` it is what a GPU reserves. Stages run concurrently, PyTorch keeps the memory of each stream apart,
    and a CUDA graph keeps its own: so it is a step of each stage, and a validation beside them. What cuDNN and cuBLAS
    take inside of an operator is not known. ``track`` wraps the iterable over the stages, for a progress bar.
    """
    steps, validations = [], []

    def run() -> None:
        flow = build_flow(config, channels)
        flat = at_once or config.optimizer == "muon"
        kept = ["first moment", "second moment", "average", *(["flat gradient"] if flat else [])]
        held = [torch.empty_like(p) for p in flow.parameters() for _ in kept]
        if config.precision == "bf16":
            set_network_dtype(flow, torch.bfloat16)
        x = torch.rand(config.batch_size, *example_shape(config, channels))
        condition = torch.zeros(config.batch_size, dtype=torch.int64) if config.labelled else None
        for stage, image in track(list(zip(stage_modules(flow), stage_inputs(flow, x), strict=True))):
            with LiveMemory() as step:
                stage.train().log_prob(image, condition).mean().backward()
                flow.zero_grad()
            with LiveMemory() as validation, torch.no_grad():
                stage.eval().log_prob(image, condition)
            steps.append(step.peak)
            validations.append(validation.peak)
        del held

    # The peak is that of the largest step, beside what is held.
    peak = peak_memory(run)
    return peak - max(steps) + sum(steps) + max(validations) if at_once else peak


def check_memory(
    config: RunConfig,
    channels: int,
    accelerator: str,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> None:
    """Raise unless a run of these settings fits into the memory of the device. ``accelerator`` is Fabric's.

    ``track`` wraps the iterable over the stages, for a progress bar.

    Raises:
        RunError: the run does not fit, or this machine has more processes than GPUs.
    """
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    needed = step_memory(config, channels, cuda, track)
    free = free_memory(processes.gpu() if cuda else torch.device("cpu"))
    if needed > free:
        conv = config.coupling == "conv" and config.memory == "plain"
        what = f"images of {config.size}x{config.size}" if config.shape is None else f"examples {list(config.shape)}"
        raise RunError(
            f"a step on {config.batch_size} {what} takes about {needed / GIB:.1f} GiB, "
            f"and {free / GIB:.1f} GiB are free: lower --batch-size, which --accumulate makes up for"
            + (", or choose --memory invertible" if conv else "")
        )
