"""Fingerprints of a run's data in ``data.json``, to notice later that the images have changed."""

import zlib
from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from pnf.data import DataError, load, load_reals
from pnf.data.images import Examples, Progress
from pnf.files import read_json, replace_json
from pnf.training.config import RunConfig, RunError

DATA_NAME = "data.json"


class HeldOut(BaseModel):
    """The fingerprint of test images, and of their labels if the run has labels.

    ``crc32`` holds checksums of the first 1, 2, 4, ... images and of all.
    """

    images: int
    shape: list[int]
    crc32: dict[int, int]

    @classmethod
    def of(cls, images: Examples) -> Self:
        """Make the fingerprint of test images."""
        return cls(images=len(images), shape=list(images.shape), crc32=_checksums(images))


class Fingerprint(BaseModel):
    """The fingerprint of a run's training images, and of the test images beside them, if there were any.

    Runs of older versions have none of test images. ``of_class`` has the number of training images of each class of a
    run with labels.
    """

    images: int
    shape: list[int]
    crc32: int
    of_class: list[int] | None = None
    test: HeldOut | None = None

    @classmethod
    def of(cls, images: Examples) -> Self:
        """Make the fingerprint of training images."""
        counts = None if images.labels is None else images.labels.bincount(minlength=len(images.classes)).tolist()
        crc = _checksums(images)[len(images)]
        return cls(images=len(images), shape=list(images.shape), crc32=crc, of_class=counts)

    def same_training(self, other: Self) -> bool:
        """Whether both fingerprints are of the same training images."""
        return (self.images, self.shape, self.crc32) == (other.images, other.shape, other.crc32)

    def save(self, folder: Path) -> None:
        """Write the fingerprint into a run's folder."""
        replace_json(folder / DATA_NAME, self.model_dump(exclude_none=True))

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Load the fingerprint in a run's folder, if there is one.

        Raises:
            RunError: the file is damaged.
        """
        path = folder / DATA_NAME
        try:
            return cls.model_validate(read_json(path))
        except FileNotFoundError:
            return None
        except ValueError:
            raise RunError(f"{path} is damaged; remove it to go on without a check of the images") from None


def load_split(
    config: RunConfig,
    split: str,
    *,
    data: str | None = None,
    limit: int | None = None,
    labels: bool | None = None,
    progress: Progress | None = None,
) -> Examples:
    """Load a split of a run's data set, or of another, at the run's size.

    By default it has labels if the run has any. They number the run's classes. Real data is standardised.

    Raises:
        DataError: the data set cannot be read, or lacks the run's labels.
    """
    if config.support == "real":
        reals = load_reals(config.source if data is None else data, split, limit=limit, progress=progress)
        return reals if config.standardisation is None else config.standardisation.of(reals)
    images = load(
        config.source if data is None else data,
        split,
        config.size,
        limit=limit,
        labels=config.labelled if labels is None else labels,
        attribute=config.attribute,
        progress=progress,
    )
    return images if config.classes is None else images.with_classes(config.classes)


def remember(folder: Path, config: RunConfig, images: Examples) -> None:
    """Write the fingerprint of a run's training images, and of as many test images beside them.

    Args:
        folder: the folder of the run.
        config: the run's settings.
        images: the training images.
    """
    found = Fingerprint.of(images)
    # Training needs no test images.
    with suppress(DataError, ImportError):
        found.test = HeldOut.of(load_split(config, "test", limit=config.limit))
    found.save(folder)


def check_training(folder: Path, config: RunConfig, images: Examples) -> None:
    """Raise if training images do not match the fingerprint of a run. A run without one is not checked.

    Raises:
        RunError: the images differ, or the fingerprint is damaged.
    """
    known = Fingerprint.load(folder)
    if known is not None and not known.same_training(Fingerprint.of(images)):
        raise RunError(
            f"{folder} was trained on other {images.noun} than those in {config.data}: restore them, or choose another "
            "--out"
        )


def check_test(folder: Path, config: RunConfig, images: Examples, limit: int | None = None) -> None:
    """Raise if test images do not match the fingerprint of a run. A run without one is not checked.

    Args:
        folder: the folder of the run.
        config: the run's settings.
        images: the test images.
        limit: the largest number of images that was requested, all by default.

    Raises:
        RunError: the images differ, or the fingerprint is damaged.
    """
    fingerprint = Fingerprint.load(folder)
    if fingerprint is None or fingerprint.test is None:
        return
    known, found = fingerprint.test, HeldOut.of(images)
    fewer = found.images < known.images and (limit is None or found.images < limit)
    more = found.images > known.images and (config.limit is None or known.images < config.limit)
    # The largest number of first images with a checksum in both.
    common = max(known.crc32.keys() & found.crc32.keys(), default=0)
    if fewer or more or found.shape != known.shape or found.crc32.get(common) != known.crc32.get(common):
        raise RunError(
            f"{folder} was trained beside other test {images.noun} than those in {config.data} now: restore them, or "
            "give the data set to take with --data"
        )


def _checksums(images: Examples) -> dict[int, int]:
    """CRC-32 of the first 1, 2, 4, ... images and of all, so that the first few can be checked alone.

    Labels are part of it, each after the images of its step.
    """
    found, crc, start = {}, 0, 0
    for stop in [*(2**k for k in range(len(images).bit_length()) if 2**k < len(images)), len(images)]:
        crc = zlib.crc32(images.stored[start:stop].contiguous().numpy().data, crc)
        if images.labels is not None:
            crc = zlib.crc32(images.labels[start:stop].numpy().data, crc)
        found[stop], start = crc, stop
    return found
