"""The models of the paper's Table 1 at equal budgets: which are trained on what, for how long, and what came of it.

A folder of results holds a folder for each row of the table, and that a run of each model, which all commands take, its
``result.json`` and ``log_probs.npy``, the log-likelihood of every test image by stage. ``plan.json`` holds what was
decided for a row once and for all: the settings of its three runs.
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
from pnf.experiments.rows import MODELS, ROWS, TITLES, Row, row_settings
from pnf.files import replace_json
from pnf.flows.saving import WEIGHTS_NAME
from pnf.training.config import RunConfig
from pnf.training.fingerprints import check_test
from pnf.training.hardware import most_memory, reset_peak_memory
from pnf.training.logs import training_seconds
from pnf.training.trainer import MODEL, train


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
    """Train and evaluate the models of a row that are not finished.

    Args:
        row: which.
        data: where its data is.
        folder: of the row.
        budget: of each model. A row that was begun keeps the seconds that it was begun with.
        device: where the models are trained.
        console: where progress is shown.
        track: makes a progress bar of that description.
        finished: called after each model.

    Returns:
        What went wrong with models that could not be trained, a line each.

    Raises:
        RunError: the row was begun as a quick trial and is no more, or the other way round, or another process has it.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; everything is saved.
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
    """The results in a folder, by row and model, in the order of the table; what is not finished is left out.

    A PNF beside a finished RealNVP has ``below_realnvp``, by how many bits/dim it is below it, and the standard error
    ``below_realnvp_error``: that of the mean difference over images. Both see an image with the same noise, and much of
    what makes an image likely or not is common to both.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in ROWS:
        runs = {name: folder / row.name / name for name in MODELS}
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
