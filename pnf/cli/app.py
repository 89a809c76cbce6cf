"""The application: its commands, and how their errors reach the user."""

import errno
import sys
from typing import Annotated

import torch
import typer

import pnf
from pnf.cli import check, doctor, evaluate, join, pictures, reproduce, scales, train
from pnf.data import DataError
from pnf.training import Interrupted, RunError

app = typer.Typer(
    name="pnf",
    help="Progressive Normalizing Flows: train, evaluate, sample and upscale.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


app.command("train")(train.train_command)
app.command("join")(join.join_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("sample")(pictures.sample_command)
app.command("upscale")(pictures.upscale_command)
app.command("project")(pictures.project_command)
app.command("curves")(evaluate.curves_command)
app.command("check")(check.check_command)
app.command("anomaly")(scales.anomaly_command)
app.command("quality")(scales.quality_command)
app.add_typer(reproduce.app, name="reproduce")
app.command("doctor")(doctor.doctor_command)


def run() -> int:
    """Run the command in ``sys.argv``; the exit status."""
    try:
        app()
    except Interrupted as error:
        print(f"pnf: {error}", file=sys.stderr)
        return 128 + error.signal_number
    except (RunError, DataError) as error:
        print(f"pnf: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(f"pnf: {str(error).splitlines()[0]} Use a smaller --batch-size (and --accumulate)", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"pnf: {_os_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pnf: stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code == 130:
            # Typer makes it of Ctrl-C.
            print("pnf: stopped", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _os_error(error: OSError) -> str:
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return f"{what}; free some space and try again (a run's last checkpoints are sound: --resume)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}; choose a folder that you may write to"
    return what
