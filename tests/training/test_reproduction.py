"""The rows of Table 1: trained once, in equal times, and gone on with where they were stopped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pnf.training import RunError
from pnf.training.reproduction import MODELS, PLAN, ROWS, Budget, locked, results, train_row

ROW = next(row for row in ROWS if row.name == "cifar10-subset")
TINY = Budget(0.05, {"limit": 40, "validation": 4, "batch_size": 4, "hidden": 2, "blocks": 1, "num_couplings": 1}, 6)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (46, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_subset.npz", train=pixels[:40], test=pixels[40:])
    return tmp_path


def trained(data: Path, budget: Budget = TINY) -> dict[str, dict[str, Any]]:
    source, folder, done = ROW.find(data), data / "table" / ROW.name, []
    assert source is not None
    failures = train_row(
        ROW,
        source,
        folder,
        budget,
        device=torch.device("cpu"),
        console=Console(quiet=True),
        track=lambda _: iter,
        finished=lambda: done.append(1),
    )
    assert failures == []
    return results(data / "table")[ROW.name]


def test_a_row_is_trained_once_and_goes_on(data: Path) -> None:
    first = trained(data)
    assert list(first) == list(MODELS)
    assert all(result["steps"] >= 1 and result["images"] == 6 for result in first.values())
    assert "below_realnvp" in first["bounded"]
    assert "below_realnvp" not in first["realnvp"]
    folder = data / "table" / ROW.name
    plan = json.loads((folder / PLAN).read_text())
    assert list(plan["runs"]) == list(MODELS)
    # What is finished stays as it is; what is not is made from the same plan, to the same bits.
    (folder / "bounded" / "result.json").unlink()
    again = trained(data)
    assert again["realnvp"] == first["realnvp"]
    assert again["bounded"]["nats"] == first["bounded"]["nats"]


def test_absent_data_another_kind_of_budget_and_another_process(data: Path, tmp_path: Path) -> None:
    assert ROW.find(tmp_path / "nowhere") is None
    trained(data)
    (data / "table" / ROW.name / "identity" / "result.json").unlink()
    with pytest.raises(RunError, match="was begun with --quick: choose another --out"):
        trained(data, Budget(0.05))
    with (
        locked(data / "table" / ROW.name),
        pytest.raises(RunError, match="is being trained by another process: name other rows with --row"),
    ):
        trained(data)
