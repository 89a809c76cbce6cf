"""Flows, couplings and wavelets of pnf as parts of other libraries, with a module for each library.

A module imports its library, and only users import the module. Each library is an extra: ``pip install "pnf[zuko]"``.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def requires(library: str, extra: str) -> Iterator[None]:
    """Name the remedy if the library that is imported inside is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ModuleNotFoundError(
            f'pnf.bridges.{extra} needs {library}; install it with: pip install "pnf[{extra}]"', name=library
        ) from error
