"""Training and results of the models of the paper's Table 1, at equal budgets.

A folder of results holds a folder for each row of the table. That holds a run of each model, which all commands accept,
with its ``result.json`` and ``log_probs.npy``, the log-likelihood of every test image by stage. ``plan.json`` holds the
settings of the row's three runs, which are decided once.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pnf.data import Images, load
from pnf.data.images import Progress
from pnf.evaluation.likelihood import stage_log_probs, summarise
from pnf.evaluation.runs import load_run
from pnf.experiments.budget import Budget, finish_runs, in_training, plan_runs
from pnf.experiments.results import LOG_PROBS, RESULT, provenance, read_result, save_log_probs
from pnf.experiments.rows import GLOW, MODELS, ROWS, TITLES, Row, row_settings
from pnf.files import replace_json
from pnf.flows.saving import WEIGHTS_NAME
from pnf.training.config import MODEL, RunConfig
from pnf.training.fingerprints import check_test
from pnf.training.hardware import most_memory, reset_peak_memory
from pnf.training.logs import training_seconds
from pnf.training.trainer import train


def train_row(
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
    """Train and evaluate the unfinished models of a row.

    Args:
        row: the row.
        data: the place of its data.
        folder: its folder.
        budget: the budget of each model. A row that has a plan keeps the time in it.
        device: the device for the training.
        console: the console for progress.
        track: makes a progress bar with a description.
        finished: called after each model.

    Returns:
        The errors of models that could not be trained, a line each.

    Raises:
        RunError: the row's plan is for a quick trial and the budget is not, or the other way round, or another process
            trains the row.
        Interrupted: the process received SIGINT, SIGTERM or SIGHUP. Everything is saved.
    """
    if all((folder / name / RESULT).exists() for name in MODELS):
        return []
    with in_training(folder):
        reading = track(f"Reading {data}")
        configs = row_settings(row, data, budget)
        size, limit = configs["bounded"].size, configs["bounded"].limit
        images = load(data, "train", size, limit=limit, progress=reading)
        planned, configs = plan_runs(configs, images, folder, budget, device=device, console=console, title=row.title)
        test = load(data, "test", size, limit=planned.test_images, progress=reading)

        def work(name: str, config: RunConfig) -> None:
            console.print(f"{row.title}: {TITLES[name]}, {config.steps:,} steps in {folder / name}", soft_wrap=True)
            tracked = track(f"Evaluating {folder / name}")
            _train_and_evaluate(config, planned, images, test, folder / name, device, console, tracked)

        return finish_runs(configs, folder, work, finished)


def results(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The finished results in a folder, by row and model, in the order of the table.

    A row may also have the Glow of :mod:`pnf.experiments.glow`. If RealNVP is finished, each other model also has
    ``below_realnvp``, the mean difference in bits/dim over images, and its standard error ``below_realnvp_error``. The
    difference is paired: all models see each image with the same noise.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in ROWS:
        runs = {name: folder / row.name / name for name in (*MODELS, GLOW)}
        models = {name: read_result(run / RESULT) for name, run in runs.items() if (run / RESULT).exists()}
        if models:
            found[row.name] = models
        if "realnvp" not in models:
            continue
        nats = {name: np.load(runs[name] / LOG_PROBS).sum(1) for name in models}
        for name, result in models.items():
            if name != "realnvp":
                difference = (nats[name] - nats["realnvp"]) * result["bits_per_dim_error"] / result["nats_error"]
                result["below_realnvp"] = float(difference.mean())
                result["below_realnvp_error"] = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return found


def _train_and_evaluate(
    config: RunConfig,
    budget: Budget,
    images: Images,
    test: Images,
    folder: Path,
    device: torch.device,
    console: Console,
    track: Progress,
) -> None:
    memory = None
    if not (folder / MODEL / WEIGHTS_NAME).exists():
        gc.collect()
        reset_peak_memory(device)
        train(config, images, folder, resume=True, accelerator=device.type, console=console)
        memory = most_memory(device)
    check_test(folder, config, test, budget.test_images)
    _, flow = load_run(folder)
    started = time.perf_counter()
    log_probs = stage_log_probs(flow.to(device), test, track=track)
    evaluation = summarise(flow, log_probs, time.perf_counter() - started)
    save_log_probs(log_probs, folder)
    result = {
        **asdict(evaluation),
        "steps": config.steps,
        "budget_seconds": budget.seconds,
        "seconds": training_seconds(folder),
        "peak_memory_bytes": memory,
        "seed": config.seed,
        **provenance(device),
    }
    replace_json(folder / RESULT, result)
