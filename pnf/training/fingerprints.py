"""What a run remembers of its data in ``data.json``: enough to see later that other images lie there now."""

import zlib
from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from pnf.data import DataError, Images, load
from pnf.files import read_json, replace_json
from pnf.training.config import RunConfig, RunError

DATA_NAME = "data.json"


class HeldOut(BaseModel):
    """What is remembered of test images; ``crc32`` is of the first 1, 2, 4, ... images and of all."""

    images: int
    shape: list[int]
    crc32: dict[int, int]

    @classmethod
    def of(cls, images: Images) -> Self:
        """What is remembered of these."""
        return cls(images=len(images), shape=list(images.shape), crc32=_checksums(images))


class Fingerprint(BaseModel):
    """What a run remembers of its training images, and of the test images beside them, if there were any.

    Runs of older versions remember no test images.
    """

    images: int
    shape: list[int]
    crc32: int
    test: HeldOut | None = None

    @classmethod
    def of(cls, images: Images) -> Self:
        """What is remembered of these training images."""
        return cls(images=len(images), shape=list(images.shape), crc32=_checksums(images)[len(images)])

    def same_training(self, other: Self) -> bool:
        """Whether both are of the same training images."""
        return (self.images, self.shape, self.crc32) == (other.images, other.shape, other.crc32)

    def save(self, folder: Path) -> None:
        """Write it into a run's folder."""
        replace_json(folder / DATA_NAME, self.model_dump(exclude_none=True))

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What the run in a folder remembers, if it does.

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


def remember(folder: Path, config: RunConfig, images: Images) -> None:
    """Write down what a run is trained on, and which test images lie beside, as many of them as it takes to train.

    Args:
        folder: of the run.
        config: its settings.
        images: the training images.
    """
    found = Fingerprint.of(images)
    # Training needs no test images.
    with suppress(DataError, ImportError):
        found.test = HeldOut.of(load(config.source, "test", config.size, limit=config.limit))
    found.save(folder)


def check_training(folder: Path, config: RunConfig, images: Images) -> None:
    """Raise unless images are those that a run was trained on, as far as it remembers them.

    Raises:
        RunError: they are others, or what the run remembers is damaged.
    """
    known = Fingerprint.load(folder)
    if known is not None and not known.same_training(Fingerprint.of(images)):
        raise RunError(
            f"{folder} was trained on other images than those in {config.data}: restore them, or choose another --out"
        )


def check_test(folder: Path, config: RunConfig, images: Images, limit: int | None = None) -> None:
    """Raise unless test images lay beside those that a run was trained on, as far as it remembers them.

    Args:
        folder: of the run.
        config: its settings.
        images: what was read as its test images.
        limit: how many were asked for, all by default.

    Raises:
        RunError: they are others, or what the run remembers is damaged.
    """
    fingerprint = Fingerprint.load(folder)
    if fingerprint is None or fingerprint.test is None:
        return
    known, found = fingerprint.test, HeldOut.of(images)
    fewer = found.images < known.images and (limit is None or found.images < limit)
    more = found.images > known.images and (config.limit is None or known.images < config.limit)
    # As many of the first images as both have a checksum of.
    common = max(known.crc32.keys() & found.crc32.keys(), default=0)
    if fewer or more or found.shape != known.shape or found.crc32.get(common) != known.crc32.get(common):
        raise RunError(
            f"{folder} was trained beside other test images than those in {config.data} now: restore them, or give the "
            "data set to take with --data"
        )


def _checksums(images: Images) -> dict[int, int]:
    """CRC-32 of the first 1, 2, 4, ... images and of all, so that the first few can be checked alone."""
    found, crc, start = {}, 0, 0
    for stop in [*(2**k for k in range(len(images).bit_length()) if 2**k < len(images)), len(images)]:
        crc = zlib.crc32(images.pixels[start:stop].contiguous().numpy().data, crc)
        found[stop], start = crc, stop
    return found
