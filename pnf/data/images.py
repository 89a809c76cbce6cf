"""The result, the request and the error that all readers share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pnf.data.transforms import dequantize
from pnf.files import printable

SPLITS = ("train", "validation", "test")

Progress = Callable[[Iterable[Any]], Iterable[Any]]

MOST_CLASSES = 2**16
"""The most classes of a data set."""


class DataError(ValueError):
    """A data set cannot be read. The message is one line: the file, the wanted, the found, and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Examples:
    """What :class:`Images` and :class:`Reals` share: examples in memory, and perhaps their labels."""

    noun: ClassVar[str] = "examples"
    """What messages call them."""

    name: str
    split: str

    @property
    def labels(self) -> Tensor | None:
        """``[N]``, int64, the class of each example, if they were read."""
        return None

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        return ()

    @property
    def stored(self) -> Tensor:
        """The examples as they are stored, ``[N, *shape]``."""
        raise NotImplementedError

    def continuous(self, generator: torch.Generator) -> Tensor:
        """The examples as a flow models them: float32 ``[N, *shape]``."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.stored.shape[1:])

    def take(self, indices: Tensor | slice) -> Self:
        """Some of the examples, with their labels."""
        labels = None if self.labels is None else self.labels[indices]
        return self._with(self.stored[indices], labels)

    def mirrored(
        self,
        chosen: Tensor,  # [N], bool
    ) -> Self:
        """The examples, with those chosen mirrored along the width."""
        along = chosen.view(-1, *[1] * len(self.shape))
        return self._with(torch.where(along, self.stored.flip(-1), self.stored), self.labels)

    def _with(self, stored: Tensor, labels: Tensor | None) -> Self:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.stored.shape[0]


@dataclass(frozen=True, eq=False)
class Images(Examples):
    """One split of a data set of images, in memory.

    Attributes:
        pixels: ``[N, C, H, W]``, uint8.
        name: the data set's name, e.g. ``"mnist"`` or ``"celeba64"``, or the stem of its file or folder.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        labels: ``[N]``, int64, the class of each image, if they were read.
        classes: the name of each class. Where the data set gives none, it is the number.

    Raises:
        TypeError: ``pixels`` is not uint8, or ``labels`` are not int64.
        ValueError: ``pixels`` is not four-dimensional, or a label is missing or out of range.
    """

    noun: ClassVar[str] = "images"

    pixels: Tensor
    name: str
    split: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8:
            raise TypeError(f"Images: pixels must be torch.uint8, got {self.pixels.dtype}")
        if self.pixels.ndim != 4:
            raise ValueError(f"Images: pixels must be [N, C, H, W], got {list(self.pixels.shape)}")
        if self.labels is None:
            return
        if self.labels.dtype != torch.int64:
            raise TypeError(f"Images: labels must be torch.int64, got {self.labels.dtype}")
        if self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f"Images: labels must be [{len(self)}], got {list(self.labels.shape)}")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"Images: labels must be from 0 to {len(self.classes) - 1}, got {int(self.labels.min())} to "
                f"{int(self.labels.max())}"
            )

    @property
    def stored(self) -> Tensor:
        """The pixels."""
        return self.pixels

    def continuous(self, generator: torch.Generator) -> Tensor:
        """The pixels, dequantized by :func:`pnf.data.dequantize`."""
        return dequantize(self.pixels, generator)

    def _with(self, stored: Tensor, labels: Tensor | None) -> Self:
        return replace(self, pixels=stored, labels=labels)

    def with_classes(self, classes: Sequence[str]) -> "Images":
        """The same images with labels that number these classes.

        Raises:
            DataError: an image is of another class.
        """
        if self.labels is None or self.classes == tuple(classes):
            return self
        number = {name: i for i, name in enumerate(classes)}
        foreign = [self.classes[i] for i in self.labels.unique().tolist() if self.classes[i] not in number]
        if foreign:
            raise DataError(
                f"{self.name}: wanted images of the classes {brief_list(classes)}, got some of {brief_list(foreign)}; "
                "remove them, or train with them"
            )
        numbers = torch.tensor([number.get(name, 0) for name in self.classes])
        return replace(self, labels=numbers[self.labels], classes=tuple(classes))

    def __repr__(self) -> str:
        return f"Images(name={self.name!r}, split={self.split!r}, pixels=uint8 {list(self.pixels.shape)})"


@dataclass(frozen=True, eq=False)
class Reals(Examples):
    """One split of a data set of real numbers that are no images: vectors, signals or fields.

    Attributes:
        values: ``[N, D]``, ``[N, C, D]`` or ``[N, C, H, W]``, float32 or float64.
        name: the stem of the file.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        TypeError: ``values`` has another dtype.
        ValueError: ``values`` has another number of dimensions.
    """

    values: Tensor
    name: str
    split: str

    def __post_init__(self) -> None:
        if self.values.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"Reals: values must be torch.float32 or torch.float64, got {self.values.dtype}")
        if self.values.ndim not in (2, 3, 4):
            raise ValueError(f"Reals: values must be [N, D], [N, C, D] or [N, C, H, W], got {list(self.values.shape)}")

    @property
    def stored(self) -> Tensor:
        """The values."""
        return self.values

    def continuous(self, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - they are continuous already
        """The values in float32."""
        return self.values.float()

    def _with(self, stored: Tensor, labels: Tensor | None) -> Self:
        assert labels is None
        return replace(self, values=stored)

    def __repr__(self) -> str:
        dtype = str(self.values.dtype).removeprefix("torch.")
        return f"Reals(name={self.name!r}, split={self.split!r}, values={dtype} {list(self.values.shape)})"


@dataclass(frozen=True)
class Request:
    """A request of ``pnf.data.load`` to a reader: at most ``limit`` images of a split.

    Readers that decode images return them at ``size``. ``load`` resizes those of the others. With ``labels`` they also
    return the label of each image. ``attribute`` names the one of CelebA.
    """

    split: str
    size: tuple[int, int] | None = None
    limit: int | None = None
    progress: Progress | None = None
    labels: bool = False
    attribute: str | None = None


def brief(error: Exception) -> str:
    """The first line of an error's message, shortened, since an untrusted file may have written it."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def brief_list(names: Sequence[str]) -> str:
    """The first names of a list, which may be long, and their number."""
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:8])}, ... ({len(names)} in all)"


def numbered(
    numbers: np.ndarray,  # [N] of integers
    where: str,
    rows: slice,
) -> tuple[Tensor, tuple[str, ...]]:
    """Some of the labels in a file as int64, and the names of the classes 0 to the largest label of all.

    Raises:
        DataError: a label is negative, or so large that it can hardly number a class.
    """
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            f"{where}: wanted labels from 0 to {MOST_CLASSES - 1}, got {low} to {high}; number the classes from 0"
        )
    return torch.from_numpy(numbers[rows].astype(np.int64)), tuple(map(str, range(high + 1)))


def check_count(where: str, labels: int, images: int) -> None:
    """Raise DataError unless there is a label for each image."""
    if labels != images:
        raise DataError(f"{where}: wanted a label for each of {images} images, got {labels}; get both files again")


def missing_split(where: Path, split: str, available: Sequence[str]) -> DataError:
    """The error for a split that the data set at ``where`` lacks."""
    return DataError(f"{where}: wanted the {split} split, got a set that has only {', '.join(available)}")
