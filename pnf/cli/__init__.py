"""The command line ``pnf``: its entry point, which imports little."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from pnf._signals import STOPPING

starting = ExitStack()
"""Closed when a command is imported. Until then signals end the process at once."""


def main() -> None:
    """Run a command. A user's mistake gives one line on standard error and a non-zero exit status."""
    _fill_standard_streams()
    try:
        with starting:
            starting.enter_context(stopping_at_once())
            from pnf.cli.app import run

            code = run()
    except ModuleNotFoundError as error:
        name = (error.name or "pnf").partition(".")[0]
        if name == "pnf":
            raise
        sys.exit(f"pnf: the command line needs {name}; install it with: pip install 'pnf[train]'")
    # All work is done. Ctrl-C while Python shuts down changes nothing, so it need not print anything.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Let signals end the process during imports, with one line and the exit status of a signal.

    There is nothing to save yet, and a KeyboardInterrupt breaks some imports.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            # Under nohup SIGHUP is ignored. Keep it so.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"pnf: stopped\n")
    os._exit(128 + number)


def _fill_standard_streams() -> None:
    """Open standard streams that the caller has closed (``>&-``).

    Otherwise one of our files would get the number of a stream, and everything that is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
