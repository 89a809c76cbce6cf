"""The result, the request and the error that all readers share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnf.files import printable

SPLITS = ("train", "validation", "test")

Progress = Callable[[Iterable[Any]], Iterable[Any]]


class DataError(ValueError):
    """A data set cannot be read. The message is one line: the file, the wanted, the found, and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True, eq=False)
class Images:
    """One split of a data set, in memory.

    Attributes:
        pixels: ``[N, C, H, W]``, uint8.
        name: the data set's name, e.g. ``"mnist"`` or ``"celeba64"``, or the stem of its file or folder.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        TypeError: ``pixels`` is not uint8.
        ValueError: ``pixels`` is not four-dimensional.
    """

    pixels: Tensor
    name: str
    split: str

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8:
            raise TypeError(f"Images: pixels must be torch.uint8, got {self.pixels.dtype}")
        if self.pixels.ndim != 4:
            raise ValueError(f"Images: pixels must be [N, C, H, W], got {list(self.pixels.shape)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __repr__(self) -> str:
        return f"Images(name={self.name!r}, split={self.split!r}, pixels=uint8 {list(self.pixels.shape)})"


@dataclass(frozen=True)
class Request:
    """A request of ``pnf.data.load`` to a reader: at most ``limit`` images of a split.

    Readers that decode images return them at ``size``. ``load`` resizes those of the others.
    """

    split: str
    size: tuple[int, int] | None = None
    limit: int | None = None
    progress: Progress | None = None


def brief(error: Exception) -> str:
    """The first line of an error's message, shortened, since an untrusted file may have written it."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def missing_split(where: Path, split: str, available: Sequence[str]) -> DataError:
    """The error for a split that the data set at ``where`` lacks."""
    return DataError(f"{where}: wanted the {split} split, got a set that has only {', '.join(available)}")
