"""Training curves of runs, in bits/dim."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pnf import figures
from pnf.evaluation.image_files import picture
from pnf.evaluation.runs import run_names
from pnf.training.build import build_flow, stage_dims, stage_names
from pnf.training.config import RunConfig, RunError
from pnf.training.logs import read_logs
from pnf.training.progress import bits_of

_SPLITS = ("train", "validation")


def draw_curves(folders: Sequence[Path], target: Path) -> None:
    """Draw the training curves of runs into a picture, for training images and held-out ones.

    They are in bits/dim, or for real data in nats/dim of its standardised values.

    Raises:
        RunError: a run has no logs yet, the runs are of images and of real data, or the picture cannot be written.
    """
    target = picture(target)
    configs = [RunConfig.load(folder) for folder in folders]
    supports = {config.support for config in configs}
    if len(supports) > 1:
        raise RunError("images have bits/dim, and real data has not: draw the curves of their runs one by one")
    real = supports == {"real"}
    training, validation, models = {}, {}, {}
    for folder, config, name in zip(folders, configs, run_names(folders), strict=True):
        models[name] = config.model if config.model == "realnvp" else config.detail
        logged = _read_logs(folder)
        if not logged["train"]:
            raise RunError(f"{folder} has no logs yet: is it training?")
        training[name] = _curve(logged["train"], real)
        if logged["validation"]:
            validation[name] = _curve(logged["validation"], real)
    unit = {"unit": "nats/dim"} if real else {}
    figures.save(figures.training_curves(training, validation=validation or None, models=models, **unit), target)


def _curve(nats_by_step: dict[int, float], real: bool) -> list[tuple[int, float]]:
    return [(step, nats if real else bits_of(nats)) for step, nats in sorted(nats_by_step.items())]


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
