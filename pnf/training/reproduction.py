"""The models of the paper's Table 1 at equal budgets: which are trained on what, for how long, and what came of it.

A folder of results holds a folder for each row of the table, and that a run of each model, which all commands take, its
``result.json`` and ``log_probs.npy``, the log-likelihood of every test image by stage. ``plan.json`` holds what was
decided for a row once and for all: the settings of its three runs.
"""

import fcntl
import gc
import io
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import pnf
from pnf.data import Images, load, locate
from pnf.data.images import Progress
from pnf.files import replace_file, replace_json
from pnf.flows.pretrained import WEIGHTS_NAME
from pnf.training.config import RunConfig, RunError
from pnf.training.evaluation import load_run, stage_log_probs, summarise
from pnf.training.fingerprints import check_test
from pnf.training.logs import training_seconds
from pnf.training.machine import most_memory, processor, reset_peak_memory
from pnf.training.trainer import MODEL, Interrupted, step_seconds, train

PLAN, RESULT, LOG_PROBS = "plan.json", "result.json", "log_probs.npy"

CALIBRATION = 0.02
"""Share of a model's time in which its speed is measured."""

VALIDATIONS = 20
"""How often held-out images are looked at in a run, and checkpoints written."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: of the row, and of its folder.
        title: data set and kind of networks.
        sources: where the data may lie under the root.
        settings: of the runs, the same for all three models.
        baseline: what is other for RealNVP.
        foreign: data sets that may lie under the root, to tell the row's own images from.
        paper: bits/dim of RealNVP and of PNF in the paper's Table 1, if it has the row.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    settings: dict[str, object]
    foreign: tuple[str, ...]
    baseline: dict[str, object] = field(default_factory=dict)
    paper: tuple[float, float] | None = None

    def find(self, root: Path) -> Path | None:
        """The row's data under the root, if it is there."""
        return next((path for source in self.sources if (path := root / source).exists()), None)


_DENSE: dict[str, object] = {"coupling": "dense", "hidden": 256, "blocks": 2, "num_couplings": 6, "batch_size": 128}
# As many parameters as the five networks of a ProgressiveFlow.
_DENSE_BASELINE: dict[str, object] = {"hidden": 480}
# A step of each of the three models takes about as long, and RealNVP has the most parameters.
_CONV: dict[str, object] = {
    "coupling": "conv",
    "hidden": 16,
    "blocks": 2,
    "num_couplings": 2,
    "norm": "batch",
    "lr": 5e-3,
}
_COLOUR = {**_CONV, "flip": True, "validation": 500}
_COLOUR_64 = {**_COLOUR, "size": 64, "batch_size": 32}
_MNIST, _FASHION, _PHOTOS, _SUBSET = ("MNIST",), ("FashionMNIST",), ("photos64.npz",), ("cifar10_subset.npz",)

ROWS = (
    Row("mnist-dense", "MNIST, dense", _MNIST, _DENSE, _FASHION, _DENSE_BASELINE, paper=(1.75, 1.16)),
    Row("mnist-conv", "MNIST, conv", _MNIST, _CONV, _FASHION, paper=(1.70, 2.00)),
    Row("fashion-mnist-dense", "Fashion-MNIST, dense", _FASHION, _DENSE, _MNIST, _DENSE_BASELINE),
    Row("fashion-mnist-conv", "Fashion-MNIST, conv", _FASHION, _CONV, _MNIST),
    Row("cifar10-subset", "cifar10_subset, conv", _SUBSET, _COLOUR, _PHOTOS),
    Row(
        "cifar10",
        "CIFAR-10, conv",
        ("cifar-10-batches-py", "cifar-10-batches-bin"),
        _COLOUR,
        _PHOTOS,
        paper=(3.57, 3.82),
    ),
    Row("celeba64", "CelebA, conv", ("celeba",), _COLOUR_64, _PHOTOS, paper=(2.51, 2.82)),
    Row("photos64", "photos64, conv", _PHOTOS, _COLOUR_64, _SUBSET),
)
"""The rows of the table: all settings that are not those of every run."""

MODELS: dict[str, dict[str, object]] = {
    "realnvp": {"model": "realnvp"},
    "identity": {"model": "progressive", "detail": "identity", "injector": False},
    "bounded": {"model": "progressive", "detail": "bounded"},
}
"""RealNVP, PNF as in the paper, and PNF as it is here."""

TITLES = {"realnvp": "RealNVP", "identity": "PNF, as in the paper", "bounded": "PNF, ours"}


@dataclass(frozen=True)
class Budget:
    """What each model of a row may take.

    Attributes:
        seconds: of training.
        settings: what is other in every run than the row says.
        test_images: how many are evaluated, all by default.
    """

    seconds: float
    settings: dict[str, object] = field(default_factory=dict)
    test_images: int | None = None


QUICK = Budget(5.0, {"limit": 2000, "validation": 100, "batch_size": 16}, test_images=500)
"""A trial of the whole that ends in minutes; its figures say nothing."""


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


def in_training(folder: Path) -> AbstractContextManager[None]:
    """The context in which this process alone trains the runs in a folder; errors as for :func:`locked`."""
    return locked(folder, f"{folder} is being trained by another process: name other rows with --row")


def finish_runs(
    configs: dict[str, RunConfig],
    folder: Path,
    work: Callable[[str, RunConfig], None],
    finished: Callable[[], None],
) -> list[str]:
    """Do the work of each run in a folder that has no result yet.

    Args:
        configs: the settings by the names of the runs.
        folder: around the runs.
        work: trains a run and writes its result.
        finished: called after each.

    Returns:
        What went wrong with runs that could not be trained, a line each.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP came; everything is saved.
    """
    failures = []
    for name, config in configs.items():
        if (folder / name / RESULT).exists():
            continue
        try:
            work(name, config)
        except Interrupted:
            raise
        except RunError as error:
            failures.append(str(error))
        finished()
    return failures


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


@contextmanager
def locked(folder: Path, taken: str | None = None) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is missing.

    Args:
        folder: of which only one process may be in this context.
        taken: what to tell the user if another process is; by default this one waits.

    Raises:
        RunError: another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError:
            raise RunError(taken) from None
        yield


def row_settings(row: Row, data: Path, budget: Budget) -> dict[str, RunConfig]:
    """The settings of a row's runs, but for what depends on the number of their steps."""
    shared = {"data": locate(data), "keep": "best", **row.settings, **budget.settings}
    return {
        name: RunConfig.model_validate(shared | (row.baseline if name == "realnvp" else {}) | model)
        for name, model in MODELS.items()
    }


def plan_runs(
    configs: dict[str, RunConfig],
    images: Images,
    folder: Path,
    budget: Budget,
    *,
    device: torch.device,
    console: Console,
    title: str,
    stages: Sequence[str] | None = None,
) -> tuple[Budget, dict[str, RunConfig]]:
    """The budget and the settings of runs at equal times, as they were written down, or found out now and written down.

    The schedule of the learning rate needs the number of steps, so a time is made one: the speeds of the models are
    measured by turns, and never again.

    Args:
        configs: the settings, but for what depends on the number of steps.
        images: the training images of all of them.
        folder: around the runs.
        budget: of each.
        device: where they are trained.
        console: where progress is shown.
        title: what the runs are called there.
        stages: those that are trained, all by default.

    Raises:
        RunError: the runs were begun as a quick trial and are no more, or the other way round.
    """
    path = folder / PLAN
    if path.exists():
        plan = read_result(path)
        planned = Budget(**plan["budget"])
        if (planned.settings, planned.test_images) != (budget.settings, budget.test_images):
            raise RunError(
                f"{folder} was begun {'without' if budget.settings else 'with'} --quick: choose another --out"
            )
        return planned, {name: RunConfig.model_validate(run) for name, run in plan["runs"].items()}
    console.print(f"{title}: measuring the speed of the models", soft_wrap=True)
    taken = step_seconds(
        list(configs.values()),
        images,
        seconds=CALIBRATION * budget.seconds,
        stages=stages,
        accelerator=device.type,
    )
    for (name, config), seconds in zip(configs.items(), taken, strict=True):
        steps = max(1, int((1 - CALIBRATION) * budget.seconds / seconds))
        every = -(-steps // VALIDATIONS)
        update = {"steps": steps, "warmup": min(config.warmup, steps // 10)}
        configs[name] = config.model_copy(update=update | {"validate_every": every, "checkpoint_every": every})
    plan = {
        "budget": asdict(budget),
        "step_seconds": dict(zip(configs, taken, strict=True)),
        "runs": {name: config.model_dump() for name, config in configs.items()},
    }
    replace_json(path, plan)
    return budget, configs


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


def save_log_probs(log_probs: Tensor, folder: Path) -> None:
    """Write log-likelihoods into a run's folder."""
    content = io.BytesIO()
    np.save(content, log_probs.numpy())
    replace_file(folder / LOG_PROBS, content.getvalue())


def provenance(device: torch.device) -> dict[str, object]:
    """What made a result: code, hardware and versions."""
    return {
        "commit": _commit(),
        "hardware": processor(device),
        "threads": torch.get_num_threads(),
        "pnf": pnf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read_result(path: Path) -> Any:
    """What is in a JSON file of results.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{path} is damaged; remove it to make it anew") from None


def _commit() -> str | None:
    """The commit of the sources that run here, if they are a checkout."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.CalledProcessError):
        return None
