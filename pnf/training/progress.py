"""The progress bar of a run: likelihood, speed and time remaining."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def bits_of(nats_per_dim: float) -> float:
    """The bits/dim of images, from their log-likelihood in nats/dim."""
    return 8 - nats_per_dim / math.log(2)


class StepBar:
    """A bar over the steps of a run with nats/dim, bits/dim, examples/s and the time left.

    If drawing fails, because the reader is gone or the terminal is dead, the run goes on without the bar.

    Args:
        title: the names of the stages.
        steps: the number of steps of the whole run.
        console: the console for the bar; ``None`` draws nothing.
        bits: whether the examples are images, which have bits/dim.
    """

    def __init__(self, title: str, steps: int, console: Console | None, *, bits: bool = True) -> None:
        self._bits = bits
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=console is None,
        )
        self._task = self._progress.add_task(title, total=steps, metrics="")

    def __enter__(self) -> Self:
        with self._drawing():
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._drawing():
            self._progress.stop()

    def move(self, step: int) -> None:
        """Move the bar to ``step`` finished steps."""
        with self._drawing():
            self._progress.update(self._task, completed=step)

    def report(self, step: int, nats_per_dim: float) -> None:
        """Show the log-likelihood of held-out images, on a separate line if there is no bar."""
        console = self._progress.console
        if not self._progress.disable and not console.is_terminal:
            bits = f", {bits_of(nats_per_dim):.3f} bits/dim" if self._bits else ""
            with self._drawing():
                console.print(f"step {step:,}: held-out {nats_per_dim:.3f} nats/dim{bits}", soft_wrap=True)

    def show(self, nats_per_dim: float, images_per_second: float) -> None:
        """Show the log-likelihood, in nats for each dimension, and the speed."""
        bits = f" {bits_of(nats_per_dim):.3f} bits/dim" if self._bits else ""
        text = f"{nats_per_dim:.3f} nats/dim{bits} {images_per_second:,.0f} {'images' if self._bits else 'examples'}/s"
        with self._drawing():
            self._progress.update(self._task, metrics=text)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, SystemExit):
            # Encodings fail with ValueError, and rich raises SystemExit if the reader is gone.
            self._progress.disable = True
