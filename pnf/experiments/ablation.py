"""Ablation of our PNF: variants with one setting changed, trained for equal times.

Only the last stage is trained, which models half of all dimensions. Held-out training images judge it, so that test
images choose nothing. A folder of results holds a folder for each row of the table. That holds a run of each variant
with its ``result.json`` and ``log_probs.npy``, the log-likelihood of every held-out image.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pnf.data import load
from pnf.data.images import Progress
from pnf.experiments.budget import Budget, finish_runs, in_training, plan_runs
from pnf.experiments.results import LOG_PROBS, RESULT, provenance, read_result, save_log_probs
from pnf.experiments.rows import ROWS, Row, row_settings
from pnf.files import replace_json
from pnf.training.build import build_flow, stage_dims, stage_modules, stage_names
from pnf.training.config import RunConfig
from pnf.training.logs import training_seconds
from pnf.training.trainer import held_out_log_probs, train

OURS = "ours"

_EITHER: tuple[dict[str, object], ...] = ({"detail": "identity"}, {"norm": "none"}, {"ema": 0.0}, {"scale_l2": 0.0})

VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "conv": (
        *_EITHER,
        {"injector": False},
        {"detail": "identity", "injector": False},
        {"norm": "act"},
        {"encoder": 0},
        {"scales": 1},
        {"scales": 3},
        {"blocks": 1},
        {"blocks": 4},
        {"num_couplings": 3},
        {"num_couplings": 8},
        {"hidden": 32},
        {"optimizer": "adam", "lr": 0.005},
        {"lr": 0.01},
        {"lr": 0.1},
        {"batch_size": 64},
    ),
    "dense": (
        *_EITHER,
        {"norm": "batch"},
        {"blocks": 1},
        {"blocks": 3},
        {"num_couplings": 4},
        {"num_couplings": 10},
        {"hidden": 128},
        {"hidden": 512},
        {"lr": 0.0003},
        {"lr": 0.004},
    ),
}
"""The settings in which each variant differs from ours, by the kind of networks."""


def options(settings: dict[str, object]) -> str:
    """The options of ``pnf train`` for these settings."""
    words = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        words.append(f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}")
    return " ".join(words)


def variants(row: Row) -> dict[str, dict[str, object]]:
    """The settings of a row's variants by the names of their folders, ours first."""
    changed = VARIANTS[str(row.settings["coupling"])]
    if row.ours.get("lattice"):
        plain: dict[str, object] = {"lattice": False}
        # Identity details have none.
        changed = (plain, *(own | plain if own.get("detail") == "identity" else own for own in changed))
    return {OURS: {}} | {options(settings).replace("--", "").replace(" ", "-"): settings for settings in changed}


def ablate_row(
    row: Row,
    data: Path,
    folder: Path,
    budget: Budget,
    *,
    device: torch.device,
    console: Console,
    track: Callable[[str], Progress],
    finished: Callable[[], None],
) -> list[str]:
    """Train the last stage of every unfinished variant of a row. Arguments and errors are those of ``train_row``.

    Returns:
        The errors of variants that could not be trained, a line each.
    """
    found = variants(row)
    if all((folder / name / RESULT).exists() for name in found):
        return []
    with in_training(folder):
        ours = row_settings(row, data, budget)["bounded"]
        configs = {name: RunConfig.from_dict(asdict(ours) | settings) for name, settings in found.items()}
        images = load(data, "train", ours.size, limit=ours.limit, progress=track(f"Reading {data}"))
        stage = stage_names(build_flow(ours, images.shape[0]))[-1]
        planned, configs = plan_runs(
            configs, images, folder, budget, device=device, console=console, title=row.title, stages=[stage]
        )

        def work(name: str, config: RunConfig) -> None:
            run = folder / name
            console.print(f"{row.title}: {name}, {config.steps:,} steps in {run}", soft_wrap=True)
            train(config, images, run, stages=[stage], resume=True, accelerator=device.type, console=console)
            save_log_probs(held_out_log_probs(config, images, run, stage), run)
            flow = build_flow(config, images.shape[0])
            result = {
                "stage": stage,
                "dims": stage_dims(flow)[-1],
                "options": options(found[name]),
                "parameters": sum(p.numel() for p in stage_modules(flow)[-1].parameters()),
                "steps": config.steps,
                "budget_seconds": planned.seconds,
                "seconds": training_seconds(run),
                "held_out": config.validation,
                "seed": config.seed,
                **provenance(device),
            }
            replace_json(run / RESULT, result)

        return finish_runs(configs, folder, work, finished)


def ablations(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The finished results in a folder by row and variant, ours first.

    Each has ``nats_per_dim`` of the stage, the mean over held-out images. If ours is finished, the others also have
    ``above_ours``, the mean difference to ours, and its standard error ``above_ours_error``.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in ROWS:
        runs = {name: folder / row.name / name for name in variants(row)}
        done = {name: read_result(run / RESULT) for name, run in runs.items() if (run / RESULT).exists()}
        nats = {name: np.load(runs[name] / LOG_PROBS) / result["dims"] for name, result in done.items()}
        for name, result in done.items():
            result["nats_per_dim"] = float(nats[name].mean())
            if name != OURS and OURS in done:
                difference = nats[name] - nats[OURS]
                result["above_ours"] = float(difference.mean())
                result["above_ours_error"] = float(difference.std(ddof=1) / np.sqrt(len(difference)))
        if done:
            found[row.name] = done
    return found
