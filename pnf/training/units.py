"""Units of training: one stage each, with its own optimiser, average of weights, clock and checkpoint."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pnf.flows import ProgressiveFlow, RealNVP, scale_parameters
from pnf.training.config import RunConfig, RunError, one_line


class Objective(nn.Module):
    """Mean negative log-likelihood of a stage in nats for each image, and the penalty on its scale parameters."""

    def __init__(self, stage: nn.Module, scale_l2: float) -> None:
        super().__init__()
        self.stage, self.scale_l2 = stage, scale_l2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the negative log-likelihood alone, detached."""
        nll = -self.stage.log_prob(x).mean()  # type: ignore[operator]
        penalty = sum((p.square().sum() for p in scale_parameters(self.stage)), nll.new_zeros(()))
        return nll + self.scale_l2 * penalty, nll.detach()


class Unit:
    """One stage in training.

    Args:
        name: of the stage.
        stage: a module with ``log_prob(x) [B]``.
        dims: number of dimensions that it models.
        config: the run's settings.
        fabric: the engine.
    """

    def __init__(self, name: str, stage: nn.Module, dims: int, config: RunConfig, fabric: Fabric) -> None:
        self.name, self.dims, self.config, self.fabric = name, dims, config, fabric
        self.step = 0
        objective = Objective(stage, config.scale_l2)
        # The fused implementation differs in its bits from the others, so it is asked for by name, on every device.
        optimizer = torch.optim.Adam(objective.parameters(), lr=config.lr, fused=True)
        self.average = AveragedModel(stage, multi_avg_fn=self._move_average, use_buffers=True)
        self.average.to(fabric.device).eval()
        self.objective, self.optimizer = fabric.setup(objective, optimizer)
        self.objective.train()

    def train_step(self, batches: Sequence[Tensor]) -> Tensor:
        """One step of the optimiser on the mean gradient of the batches; the negative log-likelihood, in nats."""
        nll = torch.zeros((), device=self.fabric.device)
        for x in batches:
            loss, each = self.objective(x)
            self.fabric.backward(loss / len(batches))
            nll += each / len(batches)
        nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(self.config, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.stage)
        self.step += 1
        return nll

    @property
    def stage(self) -> nn.Module:
        """The stage with the weights of the last step."""
        stage: nn.Module = self.objective.module.stage
        return stage

    @property
    def averaged(self) -> nn.Module:
        """The stage with the averaged weights."""
        return self.average.module

    def save(self, path: Path) -> None:
        """Write the checkpoint, as a whole."""
        self.fabric.save(path, {"name": self.name, "step": self.step, **self._state()})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            RunError: the file is damaged, or of another stage or model.
        """
        checkpoint = self.fabric.load(path, weights_only=True)
        try:
            if checkpoint["name"] != self.name:
                raise RunError(f"{path} is of stage {checkpoint['name']}, wanted {self.name}")
            self.objective.load_state_dict(checkpoint["objective"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.average.load_state_dict(checkpoint["average"])
            self.step = checkpoint["step"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{path} does not fit this run: {one_line(error)}") from None

    def _state(self) -> dict[str, Any]:
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }

    @torch.no_grad()
    def _move_average(self, averages: Any, values: Any, count: Any) -> None:  # noqa: ARG002
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        # A short memory at first: the average must not carry the random start along.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averages, values, 1 - decay)


def schedule(config: RunConfig, step: int) -> float:
    """The factor of the learning rate: a linear warm-up, then constant or half a cosine down to 0."""
    factor = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        factor *= 0.5 + 0.5 * math.cos(math.pi * step / config.steps)
    return factor


def stage_names(flow: ProgressiveFlow | RealNVP) -> list[str]:
    """The names of the stages; RealNVP is one stage, the paper's f."""
    return flow.stage_names if isinstance(flow, ProgressiveFlow) else ["f"]


def stage_modules(flow: ProgressiveFlow | RealNVP) -> list[nn.Module]:
    """The modules of the stages, each with ``log_prob``."""
    return list(flow.stages) if isinstance(flow, ProgressiveFlow) else [flow]


def stage_dims(flow: ProgressiveFlow | RealNVP) -> list[int]:
    """How many dimensions each stage models."""
    return flow.stage_dims if isinstance(flow, ProgressiveFlow) else [flow.dims]


def stage_inputs(flow: ProgressiveFlow | RealNVP, x: Tensor) -> list[Tensor]:
    """The images of a batch at the resolution of every stage."""
    if not isinstance(flow, ProgressiveFlow):
        return [x]
    images = [x]
    for _ in flow.stages[1:]:
        images.append(flow.downsample(images[-1], 1))
    return images[::-1]
