"""Runs at equal budgets: how many steps each may take, and each only once."""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from pnf.data import Images
from pnf.experiments.results import RESULT, read_result
from pnf.files import replace_json
from pnf.training.config import RunConfig, RunError
from pnf.training.trainer import Interrupted, step_seconds

PLAN = "plan.json"

CALIBRATION = 0.02
"""Share of a model's time in which its speed is measured."""

VALIDATIONS = 20
"""How often held-out images are looked at in a run, and checkpoints written."""


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
