"""Files that are whole or not there: written beside their place, to the disk, and then put in it; and their names."""

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
"""Bytes; a hundred times what any configuration takes."""

_UNSUPPORTED = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""How file systems say that they cannot set a mode or synchronise: FUSE, CIFS, exFAT and what lies in a cloud."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all.

    A new file gets the mode that the umask leaves, as files that ``open`` makes; one that is replaced keeps its own.

    Raises:
        OSError: the file cannot be written; the old one, if any, is as it was.
    """
    replace_files({path: content})


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """:func:`replace_file` for files that belong together: all are on the disk before the first is put in its place."""
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
            # The user knows the file, and not the temporary one.
            error.filename = str(path)
            del error.filename2
        raise
    for folder in dict.fromkeys(path.parent for path in contents):
        _sync_folder(folder)


def replace_json(path: Path, document: object) -> None:
    """:func:`replace_file` by a JSON file."""
    replace_file(path, json_bytes(document))


def json_bytes(document: object) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(document, indent=2) + "\n").encode()


def read_json(path: Path) -> object:
    """What is in a small JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, too large or too deep.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def remove_unfinished(path: Path) -> None:
    """Remove what a kill in :func:`replace_file` left beside a file."""
    prefix = _prefix(path)
    # A folder that is missing holds nothing, and one that may be written but not listed keeps what it holds.
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for unfinished in path.parent.iterdir():
            if unfinished.name.startswith(prefix):
                unfinished.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    """How the names of a file's temporary files begin: they fit wherever the file's own name does."""
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= 64 else f".{zlib.crc32(name):08x}."


def _beside(path: Path) -> Path:
    return path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}")


def _write(temporary: Path, content: bytes, path: Path) -> None:
    # The kernel applies the umask. To read it here would mean to change it for the whole process for a moment.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        _sync(handle)
        _keep_mode(handle, path)


def _keep_mode(handle: int, path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode != stat.S_IMODE(os.fstat(handle).st_mode):
        try:
            os.fchmod(handle, mode)
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
        return  # a folder that may be written but not read; the file is in its place
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _pass_over(error: OSError) -> None:
    if error.errno not in _UNSUPPORTED:
        raise error


def printable(text: object) -> str:
    """The text in one line: line breaks, control characters and bytes that are no UTF-8 escaped, as names have them."""
    return "".join(c if c.isprintable() else escaped(c) for c in str(text))


def escaped(c: str) -> str:
    """A character by the digits of its code."""
    # Python decodes bytes that are no UTF-8 as these.
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
