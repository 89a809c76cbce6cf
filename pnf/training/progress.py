"""Progress on a terminal: of a run with its likelihoods, and of other long work."""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import length_hint
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from pnf.data.images import Progress as Track

PATIENCE = 0.5
"""The seconds of work before its bar is shown."""

_DEAD = OSError, ValueError, SystemExit
"""What writing raises if nobody can read it: encodings fail with ValueError, and rich exits if the reader is gone."""

_WIDE, _MEDIUM, _NARROW = 100, 60, 34
"""The widths of a terminal from which a bar has everything, its title and drawing, and the time that is left."""


def bits_of(nats_per_dim: float) -> float:
    """The bits/dim of images, from their log-likelihood in nats/dim."""
    return 8 - nats_per_dim / math.log(2)


def tracker(description: str, console: Console | None) -> Track:
    """Make a function that wraps an iterable into a bar, which is only drawn on a terminal and if the work is long."""

    def track(items: Iterable[Any]) -> Iterable[Any]:
        if console is None or console.quiet or not console.is_terminal:
            return items
        return _tracked(items, description, console)

    return track


def _tracked(items: Iterable[Any], description: str, console: Console) -> Iterator[Any]:
    drawing = [BarColumn(bar_width=20)] if console.width >= _MEDIUM else []
    title = Text(description)
    title.truncate(max(1, console.width - 12 - 21 * len(drawing)), overflow="ellipsis")
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        *drawing,
        TaskProgressColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task(title.plain, total=length_hint(items) or None)

    def start() -> None:
        with suppress(*_DEAD):
            bar.start()

    timer = threading.Timer(PATIENCE, start)
    timer.daemon = True
    timer.start()
    try:
        for item in items:
            yield item
            bar.advance(task)
    finally:
        timer.cancel()
        timer.join()
        with suppress(*_DEAD):
            bar.stop()


class StepBar:
    """What a console shows of a run: lines with the likelihood of held-out examples, and on a terminal a bar.

    The bar has the likelihood of the training examples, the speed and the time left. If writing fails, because the
    reader is gone or the terminal is dead, the run goes on in silence.

    Args:
        title: the names of the stages.
        steps: the number of steps of the whole run.
        console: the console; ``None`` shows nothing.
        bits: whether the examples are images, which have bits/dim.
    """

    def __init__(self, title: str, steps: int, console: Console | None, *, bits: bool = True) -> None:
        self._bits, self._console = bits, console
        self._width = 0 if console is None else console.width
        medium, narrow = self._width >= _MEDIUM, self._width >= _NARROW
        self._progress = Progress(
            *([TextColumn("{task.description}", markup=False), BarColumn(bar_width=12)] if medium else []),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[metrics]}", markup=False),
            *([TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True))] if narrow else []),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=steps, metrics="")

    def __enter__(self) -> Self:
        with self._writing():
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing():
            self._progress.stop()

    def move(self, step: int) -> None:
        """Move the bar to ``step`` finished steps."""
        with self._writing():
            self._progress.update(self._task, completed=step)

    def report(self, step: int, nats_per_dim: float) -> None:
        """Print the log-likelihood of held-out examples."""
        if self._console is not None:
            bits = f", {bits_of(nats_per_dim):.3f} bits/dim" if self._bits else ""
            with self._writing():
                self._console.print(f"step {step:,}: held-out {nats_per_dim:.3f} nats/dim{bits}", soft_wrap=True)

    def show(self, nats_per_dim: float, examples_per_second: float) -> None:
        """Show the log-likelihood of training examples, in nats for each dimension, and the speed."""
        nats, bits = f"{nats_per_dim:.3f} nats/dim", f"{bits_of(nats_per_dim):.3f} bits/dim"
        value = bits if self._bits else nats
        if self._width < _NARROW:
            text = value.split()[0]
        elif self._width < _MEDIUM:
            text = value
        else:
            both = f"{nats} {bits}" if self._bits and self._width >= _WIDE else value
            text = f"{both} {examples_per_second:,.0f} {'images' if self._bits else 'examples'}/s"
        with self._writing():
            self._progress.update(self._task, metrics=text)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except _DEAD:
            self._progress.disable, self._console = True, None
