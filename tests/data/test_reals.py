"""Files of floats that are no images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pnf.data import DataError, Reals, load, load_reals


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("shape", [(20, 7), (20, 3, 8), (20, 1, 4, 6)])
@pytest.mark.parametrize("dtype", [np.float16, "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_arrays(tmp_path: Path, shape: tuple[int, ...], dtype: Any, order: Any, form: str) -> None:
    array = np.asarray(values(*shape).astype(dtype), order=order)
    path = tmp_path / f"set.{form}"
    if form == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, array)
    train, test = load_reals(path), load_reals(path, "test", limit=1)
    kept = np.float64 if array.itemsize == 8 else np.float32
    assert torch.equal(train.values, torch.from_numpy(array[:18].astype(kept)))
    assert torch.equal(test.values, torch.from_numpy(array[18:19].astype(kept)))
    assert train.continuous(torch.Generator()).dtype == torch.float32
    assert (train.shape, train.name, len(train)) == (shape[1:], "set", 18)
    assert repr(train) == f"Reals(name='set', split='train', values={np.dtype(kept)} {[18, *shape[1:]]})"


def test_keys_are_splits_and_labels_are_passed_over(tmp_path: Path) -> None:
    train, test = values(5, 4), values(2, 4)
    np.savez(tmp_path / "set.npz", x_train=train, y_train=np.arange(5), x_test=test, y_test=np.arange(2))
    assert np.allclose(load_reals(tmp_path / "set.npz").values.numpy(), train)
    assert np.allclose(load_reals(tmp_path / "set.npz", "test").values.numpy(), test)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8), np.int16), r"wanted an array of floats: .*, got int16 \[4, 8\]; save it as float32"),
        (np.zeros(4), r"got float64 \[4\]; reshape it"),
        (np.zeros((4, 8), np.complex64), "save it as float32"),
        (np.zeros((0, 8)), "wanted at least one example and entry"),
        (np.array([[0.0, 1], [np.nan, 1]]), "wanted finite numbers, got others in example 1"),
        (np.array([[0.0, np.inf]]), "wanted finite numbers, got others in example 0"),
    ],
)
def test_wrong_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "set.npz", train=array)
    with pytest.raises(DataError, match=message):
        load_reals(tmp_path / "set.npz")


def test_floats_are_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", train=values(4, 1, 8, 8))
    with pytest.raises(DataError, match="save it as uint8, or give --support real if it is no image"):
        load(tmp_path / "set.npz")


def test_other_sources(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(DataError, match=r"wanted an .npz or .npy file of floats, got no such file"):
            load_reals(source)
    with pytest.raises(ValueError, match="load_reals: split must be one of train, validation, test, got 'dev'"):
        load_reals(tmp_path, "dev")


@pytest.mark.parametrize(("wrong", "error"), [(torch.zeros(3, 2).half(), TypeError), (torch.zeros(3), ValueError)])
def test_wrong_values(wrong: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="Reals: values must be"):
        Reals(wrong, "some", "train")
