"""Makes three small sets of real data from what Python packages ship, for ``pnf train --support real``.

    pip install matplotlib scikit-learn pygame
    python tools/make_real_sets.py OUT

- ``terrain.npz``: fields [1, 16, 16], patches of the elevation near Jacksboro in metres (matplotlib's sample data).
- ``music.npz``: signals [1, 64], windows of ``house_lo.wav`` at 11 kHz (pygame's examples).
- ``cells.npz``: vectors [30], the table of breast cancer cells (scikit-learn).

Heights and audio are integers, so that noise from [0, 1) is added to them. Test patches and windows are from places and
times of their own, and do not overlap. Beside each set stands the likelihood of a Gaussian with the mean and the
covariance of the training data, in nats/dim of held-out data.
"""

from __future__ import annotations

import argparse
import wave
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib import cbook
from sklearn.datasets import load_breast_cancer

Split = tuple[np.ndarray, np.ndarray]


def terrain(random: np.random.Generator) -> Split:
    """Patches from the western three quarters, every 4 cells, and from the eastern quarter, every 16."""
    heights = cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"].astype(np.float64)
    heights += random.random(heights.shape)
    cut = 3 * heights.shape[1] // 4
    return _patches(heights[:, :cut], 4), _patches(heights[:, cut:], 16)


def _patches(field: np.ndarray, step: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(field, (16, 16))[::step, ::step]
    return windows.reshape(-1, 1, 16, 16)


def music(random: np.random.Generator) -> Split:
    """Windows from the first 80 %, every 8 samples, and from the rest, every 64."""
    package = find_spec("pygame")
    assert package is not None
    assert package.submodule_search_locations
    with wave.open(f"{package.submodule_search_locations[0]}/examples/data/house_lo.wav") as file:
        assert (file.getsampwidth(), file.getnchannels()) == (1, 1)
        levels = np.frombuffer(file.readframes(file.getnframes()), np.uint8).astype(np.float64)
    levels += random.random(levels.shape)
    cut = 4 * len(levels) // 5
    windows = np.lib.stride_tricks.sliding_window_view
    return windows(levels[:cut], 64)[::8, None], windows(levels[cut:], 64)[::64, None]


def cells(random: np.random.Generator) -> Split:
    """Every fifth row is for the test."""
    rows = load_breast_cancer().data
    rows = rows[random.permutation(len(rows))]
    test = np.arange(len(rows)) % 5 == 0
    return rows[~test], rows[test]


def gaussian(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """The mean nats/dim of held-out examples under a Gaussian fitted to the others, and its standard error."""
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    mean, covariance = train.mean(0), np.cov(train.T)
    centred = test - mean
    distance = (centred * np.linalg.solve(covariance, centred.T).T).sum(1)
    dims = train.shape[1]
    nats = -(distance + np.linalg.slogdet(2 * np.pi * covariance)[1]) / 2 / dims
    return float(nats.mean()), float(nats.std(ddof=1) / np.sqrt(len(nats)))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Makes three small sets of real data from Python packages.")
    parser.add_argument("out", type=Path, help="the folder for the sets")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    makers: tuple[Callable[[np.random.Generator], Split], ...] = (terrain, music, cells)
    for make in makers:
        train, test = make(np.random.default_rng(0))
        np.savez_compressed(folder / f"{make.__name__}.npz", train=train.astype("f4"), test=test.astype("f4"))
        nats, error = gaussian(train, test)
        print(f"{make.__name__}: {train.shape} and {test.shape}; a Gaussian has {nats:.3f} ± {error:.3f} nats/dim")


if __name__ == "__main__":
    main()
