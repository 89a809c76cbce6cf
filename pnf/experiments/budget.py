"""Runs at equal budgets: the plan of their numbers of steps, and the training of each run once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from pnf.data import Images
from pnf.experiments.results import RESULT, read_result
from pnf.files import replace_json
from pnf.training.config import Interrupted, RunConfig, RunError
from pnf.training.trainer import step_seconds

PLAN = "plan.json"

CALIBRATION = 0.02
"""The share of a model's time for measuring its speed."""

VALIDATIONS = 20
"""The number of validations and of checkpoints in a run."""


@dataclass(frozen=True)
class Budget:
    """The budget of each model of a row.

    Attributes:
        seconds: the time of training.
        settings: settings that replace those of the row in every run.
        test_images: the number of test images to evaluate, all by default.
    """

    seconds: float
    settings: dict[str, object] = field(default_factory=dict)
    test_images: int | None = None


QUICK = Budget(5.0, {"limit": 2000, "validation": 100, "batch_size": 16}, test_images=500)
"""A trial of the whole experiment in minutes. Its figures mean nothing."""


def in_training(folder: Path) -> AbstractContextManager[None]:
    """Let only this process train the runs in a folder. Errors are those of :func:`locked`."""
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
        folder: the folder around the runs.
        work: trains a run and writes its result.
        finished: called after each run.

    Returns:
        The errors of runs that could not be trained, a line each.

    Raises:
        Interrupted: the process received SIGINT, SIGTERM or SIGHUP. Everything is saved.
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


@contextmanager
def locked(folder: Path, taken: str | None = None) -> Iterator[None]:
    """Lock a folder against other processes. A missing folder is created.

    Args:
        folder: the folder to lock.
        taken: the error message if another process holds the lock; by default this process waits.

    Raises:
        RunError: another process holds the lock, and ``taken`` is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0 if taken else -1)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(taken) from None
    try:
        yield
    finally:
        lock.release()


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
    """Plan runs at equal times, or read the plan if there is one. Return the budget and the settings.

    The schedule of the learning rate needs a number of steps. So the speeds of the models are measured once, by turns,
    and their time is converted to steps.

    Args:
        configs: the settings, except those that depend on the number of steps.
        images: the training images of all runs.
        folder: the folder around the runs.
        budget: the budget of each run.
        device: the device for the training.
        console: the console for progress.
        title: the name of the runs on the console.
        stages: the stages to train, all by default.

    Raises:
        RunError: the existing plan is for a quick trial and the budget is not, or the other way round.
    """
    path = folder / PLAN
    if path.exists():
        plan = read_result(path)
        planned = Budget(**plan["budget"])
        if (planned.settings, planned.test_images) != (budget.settings, budget.test_images):
            raise RunError(
                f"{folder} was begun {'without' if budget.settings else 'with'} --quick: choose another --out"
            )
        return planned, {name: RunConfig.from_dict(run) for name, run in plan["runs"].items()}
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
        warmup = min(config.warmup, steps // 10)
        configs[name] = replace(config, steps=steps, warmup=warmup, validate_every=every, checkpoint_every=every)
    plan = {
        "budget": asdict(budget),
        "step_seconds": dict(zip(configs, taken, strict=True)),
        "runs": {name: asdict(config) for name, config in configs.items()},
    }
    replace_json(path, plan)
    return budget, configs
