"""Runs that are stopped, killed, starved of space, or find their checkpoints damaged."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnf.data import Images
from pnf.training import Interrupted, RunConfig, RunError, train
from pnf.training.batches import Batches
from pnf.training.stage_trainer import StageTrainer

Make = Callable[..., RunConfig]
Finished = Callable[..., Path]
Results = Callable[[Path], dict[str, object]]


@pytest.fixture
def run(tmp_path: Path, tiny: Make, images: Images) -> Callable[..., list[str]]:
    """Trains or resumes a run in ``tmp_path / "run"``."""

    def go(**options: Any) -> list[str]:
        return train(tiny(), images, tmp_path / "run", accelerator="cpu", **options)

    return go


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def step_of(folder: Path, name: str) -> int:
    step: int = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["step"]
    return step


def signal_at(step: int, numbers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise signals during the making of a step's batch."""
    batch = Batches.__call__

    def interrupt(self: Batches, at: int) -> Tensor:
        if at == step:
            for number in numbers:
                signal.raise_signal(number)
        return batch(self, at)

    monkeypatch.setattr(Batches, "__call__", interrupt)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes_to_the_same_bits(
    folder: Path,
    run: Callable[..., list[str]],
    finished: Finished,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_at(6, [number], patch)
        with pytest.raises(Interrupted, match=r"^stopped and saved at step 7; go on with: pnf train --resume ") as stop:
            run()
    assert stop.value.signal_number == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert [step_of(folder, name) for name in ("f0", "f1x", "f1y")] == [7, 7, 7]
    assert not (folder / "model").exists()
    assert run(resume=True) == []
    assert results(folder) == results(finished())


def test_a_signal_at_the_last_step_comes_too_late(
    folder: Path,
    run: Callable[..., list[str]],
    finished: Finished,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal_at(11, [signal.SIGTERM], monkeypatch)
    assert run() == []
    assert results(folder) == results(finished())


def test_a_second_signal_ends_the_run_at_once(
    folder: Path,
    run: Callable[..., list[str]],
    finished: Finished,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        signal_at(6, [signal.SIGINT, signal.SIGINT], patch)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert step_of(folder, "f0") == 4
    assert run(resume=True) == []
    assert results(folder) == results(finished())


def test_stages_that_are_ahead_wait_for_the_others(
    folder: Path,
    run: Callable[..., list[str]],
    finished: Finished,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, step in (("f0", 8), ("f1x", 3)):
        with monkeypatch.context() as patch:
            signal_at(step - 1, [signal.SIGTERM], patch)
            with pytest.raises(Interrupted):
                run(stages=[name])
        assert step_of(folder, name) == step
    assert run(resume=True) == []
    assert results(folder) == results(finished())


def test_the_best_weights_outlast_a_stop(
    folder: Path, tiny: Make, images: Images, finished: Finished, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"keep": "best", "validate_every": 2, "lr": 0.3}
    with monkeypatch.context() as patch:
        signal_at(8, [signal.SIGTERM], patch)
        with pytest.raises(Interrupted):
            train(tiny(**settings), images, folder, accelerator="cpu")
    assert train(tiny(**settings), images, folder, resume=True, accelerator="cpu") == []
    assert results(folder) == results(finished(**settings))
    model = "model/model.safetensors"
    assert results(folder)[model] != results(finished(**(settings | {"keep": "last"})))[model]


def test_what_a_kill_leaves_of_a_file_is_removed(
    folder: Path, run: Callable[..., list[str]], finished: Finished, results: Results
) -> None:
    run()
    leftovers = [folder / "checkpoints/.f1x.ckpt.ab12", folder / "model/.model.safetensors.cd34"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    run(resume=True)
    assert not any(leftover.exists() for leftover in leftovers)
    assert results(folder) == results(finished())


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip_weight(content: bytes) -> bytes:
    """Flip one bit of the largest tensor."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        at = content.index(archive.read(entry)) + entry.file_size // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip_weight, lambda _: b"", lambda _: b"PK\x03\x04", lambda content: bytes(len(content))],
    ids=["truncated", "flipped", "empty", "start only", "zeros"],
)
def test_a_damaged_checkpoint_is_told_from_a_sound_one(
    folder: Path,
    run: Callable[..., list[str]],
    finished: Finished,
    results: Results,
    damage: Callable[[bytes], bytes],
) -> None:
    run()
    path = folder / "checkpoints/f1x.ckpt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"f1x\.ckpt is damaged and was not loaded; remove it to train its stage anew$"):
        run(resume=True)
    path.unlink()
    run(resume=True)
    assert results(folder) == results(finished())


class _Hostile:
    """Creates a file when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("bare", [False, True], ids=["in a checkpoint", "bare pickle"])
def test_a_hostile_checkpoint_is_not_executed(
    tmp_path: Path, folder: Path, run: Callable[..., list[str]], bare: bool
) -> None:
    run()
    path, trace = folder / "checkpoints/f0.ckpt", tmp_path / "trace"
    if bare:
        path.write_bytes(pickle.dumps({"name": _Hostile(trace)}))
    else:
        torch.save({"name": "f0", "step": _Hostile(trace)}, path)
    with pytest.raises(
        RunError, match=r"f0\.ckpt (is damaged|holds more than tensors and numbers) and was not"
    ) as told:
        run(resume=True)
    assert "\n" not in str(told.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("f1y", "f0.ckpt is of stage f1y, wanted f0"),
        ({"name": "f0", "step": 4}, "f0.ckpt does not fit this run: 'settings'"),
        ({"name": "f0", "settings": "{}", "step": 4}, "f0.ckpt is of a run with other settings"),
        ({"objective": {"stage.x": torch.zeros(1)}}, "f0.ckpt does not fit this run: "),
        ({"objective": [1]}, "f0.ckpt does not fit this run: "),
        ([1, 2], "f0.ckpt does not fit this run: "),
        (torch.zeros(3), "f0.ckpt does not fit this run: "),
    ],
    ids=["other stage", "too little", "other settings", "other model", "no state", "list", "tensor"],
)
def test_a_foreign_checkpoint(folder: Path, run: Callable[..., list[str]], content: object, message: str) -> None:
    run()
    path = folder / "checkpoints/f0.ckpt"
    if isinstance(content, str):
        shutil.copy(path.with_name(f"{content}.ckpt"), path)
    else:
        whole = torch.load(path, weights_only=True)
        torch.save(whole | content if isinstance(content, dict) and "name" not in content else content, path)
    with pytest.raises(RunError, match=message) as told:
        run(resume=True)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_no_space_leaves_the_last_checkpoint(
    folder: Path,
    run: Callable[..., list[str]],
    finished: Finished,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    real, calls = getattr(os, call), []

    def fail(*args: Any) -> Any:
        # First the images and the settings, then three checkpoints at step 4, and one at step 8. Each is one
        # replacement and two synchronisations, of the file and of its folder.
        calls.append(args)
        if len(calls) > (6 if call == "replace" else 12):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left on device"):
            run()
    assert [step_of(folder, name) for name in ("f0", "f1x", "f1y")] == [8, 4, 4]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["f0.ckpt", "f1x.ckpt", "f1y.ckpt"]
    assert run(resume=True) == []
    assert results(folder) == results(finished())


def test_no_space_for_the_settings_leaves_no_half_of_them(
    folder: Path, run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left on device"):
            run()
    assert not (folder / "run.json").exists()
    assert run() == []


@pytest.mark.parametrize("part", ["loss", "weights"])
def test_what_is_not_finite_stops_the_run(
    folder: Path,
    run: Callable[..., list[str]],
    finished: Finished,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    train_step = StageTrainer.train_step

    def spoil(self: StageTrainer, batches: list[Tensor]) -> Tensor:
        nll = train_step(self, batches)
        if self.name != "f1x" or self.step < 6:  # steps before this one
            return nll
        if part == "loss":
            return nll * float("nan")
        next(self.stage.parameters()).data.fill_(float("inf"))
        return torch.zeros(())

    message = {
        "loss": r"^the loss of stage f1x is not finite at step 7; the last checkpoint is sound: train again",
        "weights": r"^the weights of stage f1x are not finite after step 8; the last checkpoint is sound: train again",
    }
    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "train_step", spoil)
        with pytest.raises(RunError, match=message[part]):
            run()
    assert step_of(folder, "f1x") == 4
    assert run(resume=True) == []
    assert results(folder) == results(finished())
