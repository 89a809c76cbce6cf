"""The trainer of one stage, with its own optimiser, average of weights, step count and checkpoint."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from pnf.flows import set_network_dtype
from pnf.flows.couplings import ActNorm
from pnf.flows.networks import MOMENTUM
from pnf.training import processes
from pnf.training.batches import Batch
from pnf.training.config import RunConfig, RunError, one_line
from pnf.training.muon import Muon
from pnf.training.weights import Weights


class Objective(nn.Module):
    """The mean negative log-likelihood of a stage, in nats for each image."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return -self.stage.log_prob(x, condition).mean()  # type: ignore[operator]


class StageTrainer:
    """One stage in training.

    Args:
        name: the name of the stage.
        stage: a module with ``log_prob(x, condition) [B]``.
        dims: the number of dimensions that the stage models.
        config: the run's settings.
        fabric: the engine.

    Attributes:
        averaged: a copy of the stage with the moving average of its weights and buffers, all in float32.
        best: the state of ``averaged`` with the best likelihood of held-out images, if the settings keep it.
        step: the number of steps so far.
    """

    def __init__(self, name: str, stage: nn.Module, dims: int, config: RunConfig, fabric: Fabric) -> None:
        self.name, self.dims, self.config, self.fabric = name, dims, config, fabric
        self.step = 0
        self.best: dict[str, Tensor] = {}
        self._best_nats = -math.inf
        if fabric.device.type != "cpu":
            # Images have their channels last, and cuDNN would lay out each weight likewise in every step.
            stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective: Any = fabric.setup_module(Objective(stage))
        self.objective.train()
        self.averaged = copy.deepcopy(self.stage).eval()
        set_network_dtype(self.averaged, None)
        matrices = config.optimizer == "muon"
        self._weights = Weights(self.stage, self.averaged, fabric.device, matrices=matrices)
        optimizer: torch.optim.Optimizer
        if matrices:
            optimizer = Muon(self._weights.learnt, self._weights.stacks, config.lr)
        else:
            # Explicitly fused on every device, since the other implementations give different bits.
            optimizer = torch.optim.Adam(self._weights.learnt, lr=config.lr, fused=True)
        self.optimizer: Any = fabric.setup_optimizers(optimizer)

    def prepare(self) -> None:
        """Set the numbers that depend on the step, before :meth:`train_step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(self.config, self.step)
        # A short memory at first, so that the average forgets the random start.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        self._weights.weight.fill_(1 - decay)

    def train_step(self, batches: Sequence[Batch]) -> Tensor:
        """Take a step with the mean gradient of the batches, and return the mean negative log-likelihood in nats.

        Each of several processes has the same number of consecutive batches, and returns the mean of its own. It may
        become a CUDA graph, so all numbers that change are in tensors. The caller counts the steps.
        """
        self.objective.zero_grad()
        shared = self.fabric.world_size > 1
        if shared and self.step == 0:
            self._start_alike(batches[0])
        before = [buffer.clone() for buffer in self.stage.buffers()] if shared else []
        nll = torch.zeros((), device=self.fabric.device)
        for i, batch in enumerate(batches):
            with self.fabric.no_backward_sync(self.objective, enabled=shared and i < len(batches) - 1):
                loss = self.objective(*batch) / len(batches)
                self.fabric.backward(loss)
            nll += loss.detach()
        if shared:
            self._join_statistics(before, len(batches))
        self._weights.collect(self.config.scale_l2, self.config.clip)
        self.optimizer.step()
        self._weights.move_averages()
        return nll

    @property
    def stage(self) -> nn.Module:
        """The stage with the weights of the last step."""
        stage: nn.Module = self.objective.module.stage
        return stage

    def validated(self, nats: float) -> None:
        """Keep the current average of weights if its mean log-likelihood of held-out images is the best so far."""
        if self.config.keep == "best" and not nats <= self._best_nats:
            self._best_nats = nats
            self.best = {key: value.clone() for key, value in self.averaged.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        checkpoint = {
            "name": self.name,
            "settings": self.config.to_json(),
            "step": self.step,
            "objective": self.objective.state_dict(),
            "optimizer": self._weights.split(self.optimizer.state_dict()),
            "averaged": self.averaged.state_dict(),
        }
        if self.config.keep == "best":
            checkpoint |= {"best": self.best, "best_nats": self._best_nats}
        self.fabric.save(path, checkpoint)

    def load(self, path: Path) -> None:
        """Load a checkpoint.

        Raises:
            RunError: the file is damaged, or of another stage or model.
        """
        checkpoint = self.fabric.load(path, weights_only=True)
        try:
            if checkpoint["name"] != self.name:
                raise RunError(f"{path} is of stage {checkpoint['name']}, wanted {self.name}")
            if not self.config.same_model(checkpoint["settings"]):
                raise RunError(f"{path} is of a run with other settings")
            self.objective.load_state_dict(checkpoint["objective"])
            self.optimizer.load_state_dict(self._weights.join(checkpoint["optimizer"]))
            self.averaged.load_state_dict(checkpoint["averaged"])
            if self.config.keep == "best":
                self.best, self._best_nats = checkpoint["best"], checkpoint["best_nats"]
            self.step = checkpoint["step"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{path} does not fit this run: {one_line(error)}") from None

    @torch.no_grad()
    def _start_alike(self, batch: Batch) -> None:
        """Start ActNorm from the first batch of the first process, as with one process."""
        norms = [module for module in self.stage.modules() if isinstance(module, ActNorm)]
        if not norms:
            return
        if self.fabric.is_global_zero:
            # On a copy, since the step itself must still update the running statistics of batch normalisation.
            twin = copy.deepcopy(self.stage)
            twin.log_prob(*batch)  # type: ignore[operator]
            started = [module for module in twin.modules() if isinstance(module, ActNorm)]
            for norm, other in zip(norms, started, strict=True):
                norm.load_state_dict(other.state_dict())
        state = {name: tensor.cpu() for name, tensor in self.stage.state_dict().items()}
        self.stage.load_state_dict(self.fabric.broadcast(state))

    @torch.no_grad()
    def _join_statistics(self, before: list[Tensor], count: int) -> None:
        """Combine running statistics as if one process had seen this step's batches in order.

        After n batches, a process holds ``a r + b`` with ``a = (1 - momentum)**n`` and the common start r. The next
        process would turn this into ``a (a r + b) + b'``.
        """
        size, decay = self.fabric.world_size, (1 - MOMENTUM) ** count
        running = []
        for start, buffer in zip(before, self.stage.buffers(), strict=True):
            if buffer.is_floating_point():
                running.append((start, buffer))
            elif buffer.dtype != torch.bool:
                buffer.copy_(start + size * (buffer - start))
        if not running:
            return
        # In one message, since there are hundreds of small tensors.
        own = torch.cat([(buffer - decay * start).flatten() for start, buffer in running])
        joined = processes.reduce(self.fabric, decay ** (size - 1 - self.fabric.global_rank) * own, "sum")
        for (start, buffer), total in zip(running, joined.split([b.numel() for _, b in running]), strict=True):
            buffer.copy_(decay**size * start + total.view_as(buffer))


def schedule(config: RunConfig, step: int) -> float:
    """The factor of the learning rate: a linear warm-up, then constant or half a cosine down to 0."""
    factor = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        factor *= 0.5 + 0.5 * math.cos(math.pi * step / config.steps)
    return factor
