"""The application: its commands, and how their errors reach the user."""

import errno
import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import pnf
from pnf.cli import stopping_at_once
from pnf.cli.output import forgiving
from pnf.files import printable

_COMMANDS = {
    "train": ("train:train_command", "Train a flow, all stages together or some of them apart."),
    "join": ("join:join_command", "Put stages that were trained apart together into one run."),
    "evaluate": ("evaluate:evaluate_command", "Likelihood of held-out images, in all and by stage."),
    "sample": ("sample:sample_command", "A grid of images drawn from a trained flow."),
    "upscale": ("upscale:upscale_command", "Low-resolution images on their way up, each stage a column."),
    "project": ("project:project_command", "Images, their low-resolution codes, and their projections."),
    "curves": ("curves:curves_command", "Training curves of one or more runs."),
    "check": ("check:check_command", "Whether a trained flow is finite, invertible, normalised and a projection."),
    "anomaly": ("anomaly:anomaly_command", "How well a flow tells its own images from others, at each scale."),
    "quality": ("quality:quality_command", "How close held-out images come that were downscaled."),
    "reproduce": ("reproduce:app", "The paper's results: its models at equal budgets, from data to table and figures."),
    "doctor": ("doctor:doctor_command", "Versions, devices, and what runs here and why not something faster."),
}
"""Where each command is, and what it is for: a list of them need not import PyTorch."""


class _Commands(TyperGroup):
    """Commands that are imported when they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest


def _load(name: str) -> Any:
    module, _, attribute = _COMMANDS[name][0].partition(":")
    with stopping_at_once():
        command = getattr(importlib.import_module(f"pnf.cli.{module}"), attribute)
    if not isinstance(command, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command(name)(command)
        command = alone
    return typer.main.get_command(command)


app = typer.Typer(
    cls=_Commands,
    name="pnf",
    help="Progressive Normalizing Flows: train, evaluate, sample and upscale.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name, (_, _help) in _COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pnf {pnf.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Progressive Normalizing Flows: train, evaluate, sample and upscale."""


def run() -> int:
    """Run the command in ``sys.argv``; the exit status."""
    with forgiving() as (out, _):
        code = _run()
        out.flush()
        if code or out.lost is None:
            return code
        if out.lost.errno == errno.EPIPE:
            return 141  # as of what SIGPIPE ends: the reader has gone before all was said
        if out.lost.errno in (errno.EIO, errno.EBADF):
            return 0  # a terminal that is gone, or a stream that was closed: nobody wanted to read it
        print(f"pnf: standard output: {out.lost.strerror}", file=sys.stderr)
        return 1


def _run() -> int:
    try:
        if empty := _empty_value(sys.argv[1:]):
            print(f"pnf: {empty} is empty: wanted a value (is a variable of the shell not set?)", file=sys.stderr)
            return 1
        app()
    except KeyboardInterrupt:
        print("pnf: stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code == 130:
            # Typer makes it of Ctrl-C.
            print("pnf: stopped", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        message, code = _describe(error)
        if message is None:
            raise
        print(f"pnf: {printable(message)}", file=sys.stderr)
        return code
    return 0


def _empty_value(args: list[str]) -> str | None:
    """The first option or argument whose value is empty, as that of a shell's variable that is not set.

    No command takes one, and as a path it would be the folder that the user happens to be in.
    """
    for before, arg in zip(["", *args], args, strict=False):
        option, equals, value = arg.partition("=") if arg.startswith("--") else (before, "=", arg)
        # Which stages there are, the command knows.
        if equals and not value.strip() and option != "--stages":
            return option if option.startswith("-") else "an argument"
    return None


def _describe(error: Exception) -> tuple[str | None, int]:
    """What to tell the user of an error, and the exit status; nothing of a mistake of ours."""
    if isinstance(error, OSError):
        return _os_error(error), 1
    if isinstance(error, ModuleNotFoundError):
        return None, 1
    # They are there already, if it is one of them.
    import torch

    from pnf.data import DataError
    from pnf.training import Interrupted, RunError

    if isinstance(error, Interrupted):
        return str(error), 128 + error.signal_number
    if isinstance(error, RunError | DataError):
        return str(error), 1
    if isinstance(error, torch.OutOfMemoryError):
        return f"{str(error).splitlines()[0]} Use a smaller --batch-size (and --accumulate)", 1
    return None, 1


def _os_error(error: OSError) -> str:
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return f"{what}; free some space and try again (a run's last checkpoints are sound: --resume)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}; choose a folder that you may write to"
    return what
