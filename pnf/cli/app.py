"""The application: its commands, and the report of their errors to the user."""

import errno
import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import pnf
from pnf.cli import starting
from pnf.cli.output import MARKUP, forgiving
from pnf.files import printable

_COMMANDS = {
    "train": ("train:train_command", "Train a flow, all stages together or some of them apart."),
    "join": ("join:join_command", "Put stages that were trained apart together into one run."),
    "evaluate": ("evaluate:evaluate_command", "Measure the likelihood of held-out images, total and by stage."),
    "sample": ("sample:sample_command", "Draw a grid of samples from a trained flow."),
    "upscale": ("upscale:upscale_command", "Upscale low-resolution images, one column for each stage."),
    "project": ("project:project_command", "Draw images, their low-resolution codes and their projections."),
    "curves": ("curves:curves_command", "Draw the training curves of one or more runs."),
    "check": ("check:check_command", "Check that a trained flow is finite, invertible, normalised and a projection."),
    "anomaly": ("anomaly:anomaly_command", "Measure how well a flow distinguishes its images from foreign ones."),
    "quality": ("quality:quality_command", "Measure the quality of upscaled images."),
    "app": ("app_command:app_command", "Open a local page: samples, upscaling, paths between images, bits by scale."),
    "reproduce": ("reproduce:app", "Reproduce the paper's results: models at equal budgets, tables and figures."),
    "doctor": ("doctor:doctor_command", "Show versions, devices, the implementation of each op, and what is missing."),
}
"""The module and the help of each command, so that their list need not import PyTorch."""


class _Commands(TyperGroup):
    """Commands that are imported when the user calls them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest


def _load(name: str) -> Any:
    module, _, attribute = _COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(f"pnf.cli.{module}"), attribute)
    starting.close()
    if not isinstance(command, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        alone.command(name)(command)
        command = alone
    return typer.main.get_command(command)


app = typer.Typer(
    cls=_Commands,
    name="pnf",
    help="Progressive Normalizing Flows: train, evaluate, sample and upscale.",
    epilog="Example: pnf train demo --out runs/demo/pnf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
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
    """Run the command in ``sys.argv`` and return the exit status."""
    with forgiving() as (out, _):
        code = _run()
        out.flush()
        if code or out.lost is None:
            return code
        if out.lost.errno == errno.EPIPE:
            return 141  # the status of SIGPIPE: the reader has gone early
        if out.lost.errno in (errno.EIO, errno.EBADF):
            return 0  # the terminal is gone or the stream was closed, so nobody is reading
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
            # Typer turns Ctrl-C into this status.
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
    """The first option or argument with an empty value, such as an unset shell variable.

    No command accepts one. As a path it would be the working folder.
    """
    for before, arg in zip(["", *args], args, strict=False):
        option, equals, value = arg.partition("=") if arg.startswith("--") else (before, "=", arg)
        # The command itself names the possible stages.
        if equals and not value.strip() and option != "--stages":
            return option if option.startswith("-") else "an argument"
    return None


def _describe(error: Exception) -> tuple[str | None, int]:
    """The message for the user and the exit status. There is no message for a bug of ours."""
    if isinstance(error, OSError):
        return _os_error(error), 1
    if isinstance(error, ModuleNotFoundError):
        return None, 1
    # Imported late: if the error is one of these types, they are loaded already.
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
