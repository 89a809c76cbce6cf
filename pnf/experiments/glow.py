"""Glow as normflows builds and trains it, on the rows of Table 1 and in the time of their other models.

The networks, the optimiser and the size of a batch are those of normflows' own example, for images of 32 x 32 pixels:
three levels of 16 blocks of width 256. Images that cannot be halved so often get fewer levels. Source: Kingma and
Dhariwal, "Glow" (2018); Stimper et al., "normflows" (2023), examples/glow.ipynb.
"""

import importlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from pnf.data import load
from pnf.data.images import Progress
from pnf.evaluation.likelihood import stage_log_probs, summarise
from pnf.experiments.budget import PLAN, VALIDATIONS, Budget, in_training
from pnf.experiments.results import RESULT, provenance, read_result, save_log_probs
from pnf.experiments.rows import GLOW, Row
from pnf.files import replace_json
from pnf.training.batches import Batches, hold_out
from pnf.training.build import Flow
from pnf.training.checkpoints import AtomicCheckpointIO
from pnf.training.config import RunConfig, RunError
from pnf.training.hardware import exact_arithmetic
from pnf.training.trainer import step_seconds

LEVELS, BLOCKS, HIDDEN = 3, 16, 256
BATCH, LR, WEIGHT_DECAY = 128, 1e-3, 1e-5
"""The settings of the example."""

CHECKPOINT = "glow.ckpt"


class Glow(nn.Module):
    """A Glow of normflows as one stage: a density of images in [0, 1].

    Args:
        shape: ``(C, H, W)`` with even H and W.

    Raises:
        RunError: normflows is not installed.
    """

    condition_shape = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        try:
            nf: Any = importlib.import_module("normflows")
        except ImportError:
            raise RunError("Glow is that of normflows, which is not installed: pip install 'pnf[normflows]'") from None
        self.shape, self.dims = shape, math.prod(shape)
        channels, height, width = shape
        levels = min(LEVELS, *((size & -size).bit_length() - 1 for size in (height, width)))
        bases, flows, merges = [], [], []
        for i in range(levels):
            split = levels - i + (i == 0)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.lu is deprecated")  # by normflows
                blocks = [
                    nf.flows.GlowBlock(channels * 2 ** (levels + 1 - i), HIDDEN, split_mode="channel", scale=True)
                    for _ in range(BLOCKS)
                ]
            flows.append([*blocks, nf.flows.Squeeze()])
            if i:
                merges.append(nf.flows.Merge())
            shape_out = (channels * 2**split, height >> (levels - i), width >> (levels - i))
            bases.append(nf.distributions.DiagGaussian(shape_out))
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The log-likelihood of images, ``[B]`` in nats."""
        assert condition is None
        return cast("Tensor", self.flow.log_prob(x, None))


class _Trainer:
    """The training of a Glow by the example's loop, with a checkpoint."""

    def __init__(self, shape: tuple[int, ...], batches: Batches, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.glow = Glow(shape).to(device)
        self.optimizer = torch.optim.Adamax(self.glow.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        self.batches, self.device, self.seconds = batches, device, 0.0

    def step(self, number: int) -> None:
        started = time.perf_counter()
        self.optimizer.zero_grad()
        loss = -self.glow.log_prob(self.batches(number).x.to(self.device)).mean()
        if bool(loss.isfinite()):
            loss.backward()
            self.optimizer.step()
        self.seconds += time.perf_counter() - started

    def save(self, path: Path, step: int) -> None:
        state = {"glow": self.glow.state_dict(), "optimizer": self.optimizer.state_dict()}
        AtomicCheckpointIO().save_checkpoint({**state, "step": step, "seconds": self.seconds}, path)

    def load(self, path: Path) -> int:
        state = AtomicCheckpointIO().load_checkpoint(path, map_location=self.device)
        self.glow.load_state_dict(state["glow"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds = state["seconds"]
        return int(state["step"])


def train_glow(
    row: Row,
    data: Path,
    folder: Path,
    budget: Budget,  # noqa: ARG001 - the time is that of the plan
    *,
    device: torch.device,
    console: Console,
    track: Callable[[str], Progress],
    finished: Callable[[], None],
) -> list[str]:
    """Train and evaluate a Glow in the time of the models of a row, unless it is done.

    The steps are as many as take the time of RealNVP's, by steps that both take by turns. Arguments are those of
    :func:`pnf.experiments.table1.train_row`, and so is the result.

    Raises:
        RunError: normflows is not installed, the row has no plan yet, or another process trains it.
    """
    run = folder / GLOW
    if (run / RESULT).exists():
        return []
    if not (folder / PLAN).exists():
        raise RunError(f"{folder} has no plan of equal times yet: train its models first, with pnf reproduce table1")
    with in_training(folder):
        plan = read_result(folder / PLAN)
        planned = Budget(**plan["budget"])
        baseline = RunConfig.from_dict(plan["runs"]["realnvp"])
        images = load(data, "train", baseline.size, limit=baseline.limit, progress=track(f"Reading {data}"))
        test = load(data, "test", baseline.size, limit=planned.test_images, progress=track(f"Reading {data}"))
        exact_arithmetic()
        training, _ = hold_out(images, baseline.validation, baseline.seed)

        def fresh() -> _Trainer:
            batches = Batches(training, BATCH, baseline.seed, flip=baseline.flip)
            return _Trainer(images.shape, batches, baseline.seed, device)

        if "glow_steps" not in plan:
            of_realnvp, of_glow = step_seconds(
                [baseline], images, seconds=0.01 * planned.seconds, accelerator=device.type, others=[fresh().step]
            )
            plan["glow_steps"] = max(1, round(baseline.steps * of_realnvp / of_glow))
            replace_json(folder / PLAN, plan)
        steps, trainer = int(plan["glow_steps"]), fresh()
        console.print(f"{row.title}: Glow of normflows, {steps:,} steps in {run}", soft_wrap=True)
        path = run / CHECKPOINT
        done = trainer.load(path) if path.exists() else 0
        every = -(-steps // VALIDATIONS)
        for number in track(f"Training {run}")(range(done, steps)):
            trainer.step(number)
            if (number + 1) % every == 0 or number + 1 == steps:
                trainer.save(path, number + 1)
        flow = cast("Flow", trainer.glow.eval())
        started = time.perf_counter()
        log_probs = stage_log_probs(flow, test, track=track(f"Evaluating {run}"))
        save_log_probs(log_probs, run)
        result = {
            **asdict(summarise(flow, log_probs, time.perf_counter() - started)),
            "steps": steps,
            "budget_seconds": planned.seconds,
            "seconds": trainer.seconds,
            "peak_memory_bytes": None,
            "seed": baseline.seed,
            **provenance(device),
        }
        replace_json(run / RESULT, result)
    finished()
    return []
