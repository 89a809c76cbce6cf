"""Atomic writing of files, bounded reading of JSON, versions of formats, and printable names.

A file is written to a temporary file beside it, synchronised to the disk, and renamed. So it is whole or not there.
"""

import errno
import json
import os
import secrets
import stat
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LARGEST_JSON = 2**20
"""Bytes, a hundred times the size of any configuration."""

FORMAT = 1
"""The version of the formats of pnf's files. It grows when an older pnf could not read a file, or would misread it."""

_UNSUPPORTED = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""Errors of file systems that cannot set a mode or synchronise: FUSE, CIFS, exFAT and cloud storage."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all.

    A new file gets the mode of the umask, as with ``open``. A file that is replaced keeps its mode.

    Raises:
        OSError: the file cannot be written. An old file is unchanged.
    """
    replace_files({path: content})


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together by :func:`replace_file`: all are on the disk before the first is renamed."""
    written: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            written[path] = _beside(path)
            _write(written[path], content, path)
        for path, temporary in written.items():
            temporary.replace(path)
    except BaseException as error:
        for temporary in written.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # The user knows the name of the file, but not that of the temporary one.
            error.filename = str(path)
            del error.filename2
        raise
    for folder in dict.fromkeys(path.parent for path in contents):
        _sync_folder(folder)


def replace_json(path: Path, document: object) -> None:
    """Write a document as JSON by :func:`replace_file`."""
    replace_file(path, json_bytes(document))


def json_bytes(document: object) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(document, indent=2) + "\n").encode()


def read_json(path: Path) -> object:
    """Return the document in a small, untrusted JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, too large or nested too deep.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


class NewerFormatError(ValueError):
    """A newer pnf wrote a file, in a format that this one does not know."""


def without_format(document: object) -> object:
    """Return the content of a file without the version of its format. Files of pnf 0.1.0 have none.

    Raises:
        NewerFormatError: a newer pnf wrote the file.
        ValueError: the version is no positive integer.
    """
    if not isinstance(document, dict) or "format" not in document:
        return document
    version = document["format"]
    if type(version) is not int or version < 1:
        raise ValueError(f"format must be a positive integer, got {version!r}")
    if version > FORMAT:
        raise NewerFormatError(
            f"was written by a newer pnf, in format {version}, and this one reads formats up to {FORMAT}: update pnf"
        )
    return {key: value for key, value in document.items() if key != "format"}


def remove_unfinished(path: Path) -> None:
    """Remove the temporary files that a killed :func:`replace_file` left beside a file."""
    prefix = _prefix(path)
    # A missing folder holds nothing. A folder that cannot be listed keeps its temporary files.
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for unfinished in path.parent.iterdir():
            if unfinished.name.startswith(prefix):
                unfinished.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    """The start of the names of a file's temporary files, which are no longer than file systems allow."""
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= 64 else f".{zlib.crc32(name):08x}."


def _beside(path: Path) -> Path:
    return path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}")


def _write(temporary: Path, content: bytes, path: Path) -> None:
    # The kernel applies the umask. Python could only read the umask by changing it for the whole process.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        _sync(handle)
        _keep_mode(temporary, path)


def _keep_mode(temporary: Path, path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode != stat.S_IMODE(temporary.stat().st_mode):
        try:
            temporary.chmod(mode)
        except OSError as error:
            _pass_over(error)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        _pass_over(error)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # the folder may be written but not read; the file is already in its place
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _pass_over(error: OSError) -> None:
    if error.errno not in _UNSUPPORTED:
        raise error


def printable(text: object) -> str:
    """Return the text in one line, with line breaks, control characters and bytes that are no UTF-8 escaped."""
    return "".join(c if c.isprintable() else escaped(c) for c in str(text))


def escaped(c: str) -> str:
    """Return the escape sequence of a character."""
    # Python decodes bytes that are no UTF-8 into this range.
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
