"""Training curves of runs, in bits/dim."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from pnf import figures
from pnf.evaluation.image_files import png
from pnf.evaluation.runs import run_names
from pnf.training.build import build_flow, stage_dims, stage_names
from pnf.training.config import RunConfig, RunError
from pnf.training.logs import read_logs

_SPLITS = ("train", "validation")


def draw_curves(folders: Sequence[Path], target: Path) -> None:
    """Draw the training curves of runs into a picture, for training images and held-out ones.

    Raises:
        RunError: a run has no logs yet, or the picture cannot be written.
    """
    target = png(target)
    training, validation = {}, {}
    for folder, name in zip(folders, run_names(folders), strict=True):
        logged = _read_logs(folder)
        if not logged["train"]:
            raise RunError(f"{folder} has no logs yet: is it training?")
        training[name] = _bits(logged["train"])
        if logged["validation"]:
            validation[name] = _bits(logged["validation"])
    figures.save(figures.training_curves(training, validation=validation or None), target)


def _bits(curve: dict[int, float]) -> list[tuple[int, float]]:
    return [(step, 8 - nats / math.log(2)) for step, nats in sorted(curve.items())]


def _read_logs(folder: Path) -> dict[str, dict[int, float]]:
    """Nats/dim by step, averaged over the stages."""
    with torch.device("meta"):
        # The stages' shares of the dimensions do not depend on the number of channels.
        flow = build_flow(RunConfig.load(folder), 1)
    dims = dict(zip(stage_names(flow), stage_dims(flow), strict=True))
    logged = read_logs(folder)
    by_stage = {split: {name: logged[f"{split}/{name}/nats_per_dim"] for name in dims} for split in _SPLITS}
    return {split: _mean(stages, dims) for split, stages in by_stage.items()}


def _mean(stages: dict[str, dict[int, float]], dims: dict[str, int]) -> dict[int, float]:
    """The mean over dimensions, at the steps where every trained stage has a value."""
    trained = {name: values for name, values in stages.items() if values}
    steps = set.intersection(*(set(values) for values in trained.values())) if trained else set()
    total = sum(dims[name] for name in trained)
    return {step: sum(dims[name] * values[step] for name, values in trained.items()) / total for step in steps}
