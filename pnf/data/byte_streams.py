"""Reading of a declared number of bytes from untrusted files."""

from typing import Protocol

import numpy as np

from pnf.data.images import DataError, Progress

# The largest expansion of a deflate stream (zlib's technical notes). A larger declared size is false and not allocated.
DEFLATE_LIMIT = 1032

_CHUNK = 2**20


class Readable(Protocol):
    """A binary file, as far as this module needs one."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, and none at the end."""


def read_into(stream: Readable, array: np.ndarray, where: str, progress: Progress | None = None) -> None:
    """Fill a C-contiguous uint8 array from a binary stream. ``progress`` wraps the iterable over its parts.

    Raises:
        DataError: the stream ends early. The message starts with ``where``.
    """
    target = array.reshape(-1).data
    starts = range(0, len(target), _CHUNK)
    for start in starts if progress is None else progress(starts):
        filled, stop = start, min(start + _CHUNK, len(target))
        while filled < stop:
            received = stream.read(stop - filled)
            if not received:
                raise DataError(
                    f"{where}: wanted {len(target)} bytes of data, got {filled}: it is cut short; get the file again"
                )
            target[filled : filled + len(received)] = received
            filled += len(received)


def skip(stream: Readable, count: int) -> None:
    """Read past ``count`` bytes, or to the end."""
    while count > 0 and (received := stream.read(min(_CHUNK, count))):
        count -= len(received)
