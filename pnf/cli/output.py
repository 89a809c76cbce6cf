"""Standard output and standard error that accept any text and never end a command."""

import codecs
import errno
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pnf.files import escaped, printable

_PLAIN = {"±": "+-", "→": "->", "←": "<-", "…": "...", "×": "x", "−": "-", "–": "-", "—": "-", "≤": "<=", "≥": ">="}


MARKUP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= 60 else None
"""Typer's style of help. In a narrow terminal rich would cut the names of options."""

_NAME = 12
"""The least width of a column of texts. Longer ones are broken into lines."""


class Output(io.TextIOBase):
    """A stream that replaces characters missing from its encoding, and drops text that it cannot write.

    If the reader has gone, the terminal is dead or the disk is full, rich would end the process and ``print`` would
    raise. But the results of a command are in files, which matter more than its messages.

    Attributes:
        lost: the error of the first failed write, if any.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        self.lost: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._stream is not None:
            with self._losing():
                self._stream.write(plain(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._losing():
                self._stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            # A closed stream raises ValueError.
            self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, os.strerror(errno.EBADF))
            stream, self._stream = self._stream, None
            # Python flushes the stream at exit, and the rest in its buffer would fail again.
            with suppress(OSError, ValueError):
                assert stream is not None
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


@contextmanager
def forgiving() -> Iterator[tuple[Output, Output]]:
    """Make standard output and standard error an :class:`Output` for pnf, rich, typer and Python."""
    before = sys.stdout, sys.stderr
    out, err = Output(sys.stdout), Output(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def plain(text: str, encoding: str) -> str:
    """Replace the characters of a text that an encoding lacks."""
    return text.encode(encoding, "pnf").decode(encoding)


class LineConsole(Console):
    """A console without markup or emoji, since names may hold ``[b]`` or ``:dog:``, and without line breaks in a text.

    Characters that the terminal lacks are replaced before the layout of tables, so that columns stay straight.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    @property
    def is_terminal(self) -> bool:
        # Notebooks and CI set FORCE_COLOR, by which rich takes a pipe for a terminal and draws bars into it.
        return super().is_terminal and self.file.isatty()

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(plain(printable(text), self.encoding), **settings)

    def say(self, *lines: object) -> None:
        """Print lines without wrapping, since a program may read them."""
        for line in lines:
            self.print(str(line), soft_wrap=True)

    def show(self, table: Table) -> None:
        """Print a table of texts. Nothing of it is cut, and no number is broken: those are the cells to the right.

        Where the console is too narrow for the columns, the rows are printed one below the other.
        """
        least = 1 + 3 * len(table.columns)  # the lines between the columns, and their margins
        for column in table.columns:
            longest = max((cell_len(str(cell)) for cell in column.cells), default=0)
            if column.justify == "right":
                if cell_len(str(column.header)) > longest:
                    column.header = Text("\n".join(str(column.header).split()))
                column.no_wrap = True
                least += max(longest, *map(cell_len, str(column.header).split("\n")))
            else:
                column.overflow = "fold"
                least += min(longest, _NAME)
        if least <= self.width:
            self.print(table)
            return
        if table.title is not None:
            self.print(table.title)
        headers = [" ".join(str(c.header).split()) + ":" if table.show_header else "" for c in table.columns[1:]]
        columns = [map(str, column.cells) for column in table.columns]
        for row, (name, *cells) in zip(table.rows, zip(*columns, strict=True), strict=True):
            self.print(name, style=row.style, overflow="fold")
            for header, cell in zip(headers, cells, strict=True):
                line = f"{header} {cell}".strip()
                for text in [line] if cell_len(line) + 2 <= self.width else [header, cell]:
                    if cell:
                        self.print(Padding(text, (0, 0, 0, 2), expand=False), style=row.style, overflow="fold")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or ("?" if "\u2500" <= c <= "\u259f" else escaped(c)) for c in lacking), error.end


codecs.register_error("pnf", _replace)
