"""The trainer of one stage, with its own optimiser, average of weights, step count and checkpoint."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from pnf import cuda_graphs
from pnf.flows import scale_parameters, set_network_dtype
from pnf.flows.couplings import ActNorm
from pnf.flows.networks import MOMENTUM
from pnf.training import processes
from pnf.training.batches import Batch
from pnf.training.config import RunConfig, RunError, one_line


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
        objective = Objective(stage)
        # Explicitly fused on every device, since the other implementations give different bits.
        optimizer = torch.optim.Adam(objective.parameters(), lr=config.lr, fused=True)
        self.objective, self.optimizer = fabric.setup(objective, optimizer)
        self.objective.train()
        self.averaged = copy.deepcopy(self.stage).eval()
        set_network_dtype(self.averaged, None)
        pairs = list(zip(_tensors(self.averaged), _tensors(self.stage), strict=True))
        self._average = _Average([pair for pair in pairs if pair[0].is_floating_point()], fabric.device)
        self._flags = [pair for pair in pairs if not pair[0].is_floating_point()]

    def prepare(self) -> None:
        """Set the numbers that depend on the step, before :meth:`train_step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(self.config, self.step)
        # A short memory at first, so that the average forgets the random start.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        self._average.weight.fill_(1 - decay)

    def train_step(self, batches: Sequence[Batch]) -> Tensor:
        """Take a step with the mean gradient of the batches, and return the mean negative log-likelihood in nats.

        Each of several processes has the same number of consecutive batches, and returns the mean of its own. It may
        become a CUDA graph, so all numbers that change are in tensors. The caller counts the steps.
        """
        self.optimizer.zero_grad()
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
        self._penalise()
        nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip, foreach=True)
        self.optimizer.step()
        self._move_average()
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
            "optimizer": self.optimizer.state_dict(),
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
            self.optimizer.load_state_dict(checkpoint["optimizer"])
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

    @torch.no_grad()
    def _penalise(self) -> None:
        """Add the gradient of ``scale_l2 * sum(p**2)`` over the scale parameters p, all in one call."""
        scales = scale_parameters(self.stage)
        torch._foreach_add_([cast("Tensor", p.grad) for p in scales], [*scales], alpha=2 * self.config.scale_l2)

    @torch.no_grad()
    def _move_average(self) -> None:
        self._average.move()
        if self._flags:
            torch._foreach_copy_([average for average, _ in self._flags], [value for _, value in self._flags])


class _Average:
    """Moving averages of tensors.

    Where a step becomes a CUDA graph, the averages are views of one tensor, since the weight of the present values must
    be a tensor then, and PyTorch has no call for that on lists. The averages get new memory.

    Args:
        pairs: the averages and the tensors.
        device: of all tensors.

    Attributes:
        weight: the weight ``[]`` of the present values.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self.averages, self.values = [average for average, _ in pairs], [value for _, value in pairs]
        self.weight = torch.ones((), device=device)
        self._copies: list[Tensor] = []
        if not cuda_graphs.can_capture(device):
            return
        self._average, self._present = (torch.empty(sum(x.numel() for x in self.values), device=device) for _ in "ab")
        offset = 0
        for average, value in pairs:
            views = [x[offset:].as_strided(value.shape, value.stride()) for x in (self._average, self._present)]
            average.data = views[0].copy_(average)
            self._copies.append(views[1])
            offset += value.numel()

    def move(self) -> None:
        if self._copies:
            torch._foreach_copy_(self._copies, self.values)
            self._average.lerp_(self._present, self.weight)
        elif self.values:
            torch._foreach_lerp_(self.averages, self.values, self.weight.item())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def schedule(config: RunConfig, step: int) -> float:
    """The factor of the learning rate: a linear warm-up, then constant or half a cosine down to 0."""
    factor = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        factor *= 0.5 + 0.5 * math.cos(math.pi * step / config.steps)
    return factor
