"""Reading a declared number of bytes from files that may lie about it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pnf.data.images import DataError

# No deflate stream expands by more (zlib's technical notes), so a larger promise is a lie and is not allocated.
DEFLATE_LIMIT = 1032

_CHUNK = 2**20


class Readable(Protocol):
    """What is needed here of a binary file."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end."""


def read_into(stream: Readable, array: np.ndarray, where: str) -> None:
    """Fills a C-contiguous uint8 array from a binary stream.

    Raises:
        DataError: The stream ends early; the message starts with ``where``.
    """
    target = array.reshape(-1).data
    filled = 0
    while filled < len(target):
        received = stream.read(min(_CHUNK, len(target) - filled))
        if not received:
            raise DataError(
                f"{where}: wanted {len(target)} bytes of data, got {filled}: it is cut short; get the file again"
            )
        target[filled : filled + len(received)] = received
        filled += len(received)


def skip(stream: Readable, count: int) -> None:
    """Reads past ``count`` bytes, or to the end."""
    while count > 0 and (received := stream.read(min(_CHUNK, count))):
        count -= len(received)
