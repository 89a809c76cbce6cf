"""Building of the flow of a run from its settings, and access to its stages."""

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pnf import fast
from pnf.flows import ProgressiveFlow, RealNVP
from pnf.flows.config import flow_settings, progressive_settings
from pnf.training.config import RunConfig, RunError

Flow: TypeAlias = ProgressiveFlow | RealNVP

MOST_PARAMETERS = 2**33
"""The most parameters of a flow, a thousand times the largest preset's. Their optimiser state would fill 64 GiB."""

BASELINE_ALPHA = 0.05
"""The alpha of the RealNVP baseline, as published."""


def build_flow(config: RunConfig, channels: int) -> Flow:
    """Build the flow of the settings, with initial weights from the seed.

    Raises:
        RunError: the settings are invalid.
    """
    shape = example_shape(config, channels)

    def build() -> Flow:
        if config.model == "realnvp":
            alpha = BASELINE_ALPHA if config.alpha is None and config.support == "unit" else config.alpha
            return fast.RealNVP(shape, **flow_settings(replace(config, alpha=alpha)))
        classes = None if config.classes is None else len(config.classes)
        how = progressive_settings(config)
        return fast.ProgressiveFlow(shape, config.levels, num_classes=classes, support=config.support, **how)

    try:
        # Settings are untrusted: nothing is allocated before the sizes are known.
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build().parameters())
        if parameters > MOST_PARAMETERS:
            raise RunError(f"wrong settings: the flow would have {parameters:,} parameters; choose a smaller --hidden")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return build()
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"wrong settings: {error}") from None


def example_shape(config: RunConfig, channels: int) -> tuple[int, ...]:
    """The shape of an example: that of real data, or that of images with these channels."""
    return (channels, config.size, config.size) if config.shape is None else config.shape


def stage_names(flow: Flow) -> list[str]:
    """The names of the stages. RealNVP is one stage, the paper's f."""
    return flow.stage_names if isinstance(flow, ProgressiveFlow) else ["f"]


def stage_modules(flow: Flow) -> list[nn.Module]:
    """The modules of the stages, each with ``log_prob``."""
    return list(flow.stages) if isinstance(flow, ProgressiveFlow) else [flow]


def stage_dims(flow: Flow) -> list[int]:
    """The number of dimensions that each stage models."""
    return flow.stage_dims if isinstance(flow, ProgressiveFlow) else [flow.dims]


def stage_inputs(flow: Flow, x: Tensor) -> list[Tensor]:
    """The images of a batch at the resolution of every stage."""
    if not isinstance(flow, ProgressiveFlow):
        return [x]
    images = [x]
    for _ in flow.stages[1:]:
        images.append(flow.downsample(images[-1], 1))
    return images[::-1]
