from __future__ import annotations

from pathlib import Path

import pytest

from pnf.training import RunConfig, RunError
from pnf.training.logs import read_logs, training_seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that was killed in the middle of a line, and resumed from the previous checkpoint."""
    RunConfig(batch_size=10, accumulate=2).save(tmp_path)
    for version, text in enumerate(
        (
            "step,train/images_per_second,validation/nats_per_dim\n4,10,\n5,,1.5\n8,20,\n12,4",
            "step,train/images_per_second,validation/nats_per_dim\n8,40,\n10,,1.75\n11,5,\n",
        )
    ):
        path = tmp_path / f"logs/version_{version}/metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_what_was_logged_again_counts(folder: Path) -> None:
    assert read_logs(folder) == {
        "train/images_per_second": {4: 10, 8: 40, 11: 5},
        "validation/nats_per_dim": {5: 1.5, 10: 1.75},
    }


def test_the_seconds_are_those_of_each_step_once(folder: Path) -> None:
    assert training_seconds(folder) == pytest.approx(4 * 20 / 10 + 4 * 20 / 40 + 3 * 20 / 5)


def test_without_logs_there_are_no_seconds(tmp_path: Path) -> None:
    RunConfig().save(tmp_path)
    assert read_logs(tmp_path) == {}
    assert training_seconds(tmp_path) == 0


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\n",
        b"a,b\n1,2\n",
        b"step,x\nz,1\n",
        b"step,x\n1,z\n",
        b"step,x\n1,2,3\n",
        bytes(40) + b"\n",
        b"step\n.5\n",
    ],
    ids=repr,
)
def test_damaged_logs_are_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "logs/version_0/metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content + content)
    with pytest.raises(RunError, match=r"metrics\.csv is damaged; restore it, or remove it"):
        read_logs(tmp_path)


def test_other_folders_are_no_logs(tmp_path: Path) -> None:
    for name in ("version_0", "version_0 (copy)"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / "metrics.csv").write_text("step,x\n1,2\n")
    assert read_logs(tmp_path) == {"x": {1: 2.0}}
