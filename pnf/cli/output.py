"""Standard output and standard error that take everything, wherever they go, and never end the work."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from pnf.files import escaped, printable

_PLAIN = {"±": "+-", "→": "->", "←": "<-", "…": "...", "×": "x", "−": "-", "–": "-", "—": "-", "≤": "<=", "≥": ">="}


class Output(io.TextIOBase):
    """A stream that replaces what its encoding lacks, and that loses what cannot be written.

    A reader that is gone, a terminal that is dead, a full disk: rich would end the process, ``print`` raise. What a
    command works for is in files, and worth more than what it says.

    Attributes:
        lost: why something could not be written, if so.
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
            # A stream that somebody has closed raises ValueError.
            self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, os.strerror(errno.EBADF))
            stream, self._stream = self._stream, None
            # What the stream still holds would fail again when Python flushes it in the end.
            with suppress(OSError, ValueError):
                assert stream is not None
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


@contextmanager
def forgiving() -> Iterator[tuple[Output, Output]]:
    """Standard output and standard error as :class:`Output`, for all that prints: pnf, rich, typer and Python."""
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
    """The text with everything that the encoding lacks replaced by what it has."""
    return text.encode(encoding, "pnf").decode(encoding)


class LineConsole(Console):
    """A console on which a text is a line: without markup or emoji, for the ``[b]`` and ``:dog:`` of a name are none.

    What the terminal lacks is replaced before tables are laid out, so that their columns stay straight.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(plain(printable(text), self.encoding), **settings)

    def say(self, *lines: object) -> None:
        """Print lines that are not wrapped: what reads them may be a program."""
        for line in lines:
            self.print(str(line), soft_wrap=True)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or ("?" if "\u2500" <= c <= "\u259f" else escaped(c)) for c in lacking), error.end


codecs.register_error("pnf", _replace)
