"""Reading of a declared number of bytes from untrusted files."""

from typing import Protocol

import numpy as np

from pnf.data.images import DataError

# The largest expansion of a deflate stream (zlib's technical notes). A larger declared size is false and not allocated.
DEFLATE_LIMIT = 1032

_CHUNK = 2**20


class Readable(Protocol):
    """A binary file, as far as this module needs one."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, and none at the end."""


def read_into(stream: Readable, array: np.ndarray, where: str) -> None:
    """Fill a C-contiguous uint8 array from a binary stream.

    Raises:
        DataError: the stream ends early. The message starts with ``where``.
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
    """Read past ``count`` bytes, or to the end."""
    while count > 0 and (received := stream.read(min(_CHUNK, count))):
        count -= len(received)
