"""Runs that do not fit into memory."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pnf.data import Images
from pnf.training import RunConfig, RunError, memory_check, train
from pnf.training.build import stage_inputs, stage_modules
from pnf.training.memory_check import GIB, step_memory

CONFIG = RunConfig(size=8, levels=1, hidden=8, blocks=1, num_couplings=1, batch_size=4, steps=2, validation=0)


def test_invertible_memory_does_not_grow_with_depth() -> None:
    deep = replace(CONFIG, num_couplings=9, scales=1, batch_size=64)
    plain, invertible = (step_memory(replace(deep, memory=m), 1) for m in ("plain", "invertible"))
    assert invertible < plain / 2


def test_stages_at_once_take_the_memory_of_all_of_them() -> None:
    config = replace(CONFIG, size=16, batch_size=64, num_couplings=4)
    alone, at_once = (step_memory(config, 1, together) for together in (False, True))
    assert 1.2 * alone < at_once < 3 * alone


def test_the_memory_of_each_stream_counts_and_a_validation_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, batch_size=256, coupling="dense", norm="none")
    monkeypatch.setattr(memory_check, "stage_modules", lambda flow: stage_modules(flow)[-1:])
    monkeypatch.setattr(memory_check, "stage_inputs", lambda flow, x: stage_inputs(flow, x)[-1:])
    alone, at_once = (step_memory(config, 1, together) for together in (False, True))
    # One stage: a validation, and the flat gradient.
    assert alone < at_once < 1.9 * alone
    monkeypatch.setattr(memory_check, "stage_modules", lambda flow: stage_modules(flow)[-1:] * 3)
    monkeypatch.setattr(memory_check, "stage_inputs", lambda flow, x: stage_inputs(flow, x)[-1:] * 3)
    assert step_memory(config, 1) == alone
    step = (step_memory(config, 1, at_once=True) - at_once) // 2
    assert 0.5 * alone < step < alone


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
def test_the_memory_of_this_process_s_gpu_is_looked_at(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(device), (2**40, 2**40))[1])
    monkeypatch.setattr("pnf.training.processes.local_rank", lambda: 2)
    monkeypatch.setattr(memory_check, "step_memory", lambda *_: 1)
    memory_check.check_memory(CONFIG, 1, accelerator)
    assert asked == [torch.device("cuda", 2)]


def test_too_large_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pnf.training.memory_check.free_memory", lambda _: 2**16)
    images = Images(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), "grey", "train")
    with pytest.raises(RunError, match=r"takes about 0\.0 GiB.*lower --batch-size.*--memory invertible"):
        train(CONFIG, images, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert step_memory(CONFIG, 1) < GIB
