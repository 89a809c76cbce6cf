"""Weights as lists and as flat tensors: the same training, and checkpoints of one load into the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.testing import assert_close

from pnf import cuda_graphs
from pnf.data import Images, dequantize
from pnf.flows import scale_parameters
from pnf.training import RunConfig
from pnf.training.batches import Batch, seeded
from pnf.training.build import build_flow, stage_dims, stage_inputs, stage_modules, stage_names
from pnf.training.checkpoints import AtomicCheckpointIO
from pnf.training.stage_trainer import StageTrainer

Make = Callable[[bool], StageTrainer]

SETTINGS = {"dense": {"clip": 1.0, "scale_l2": 0.5}, "conv": {"coupling": "conv", "norm": "batch", "scale_l2": 0.5}}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def config(request: pytest.FixtureRequest, tiny: Callable[..., RunConfig]) -> RunConfig:
    return tiny(**request.param)


@pytest.fixture
def batches(images: Images, config: RunConfig) -> list[Batch]:
    x = dequantize(images.pixels[:64], seeded(0))
    return [Batch(stage_inputs(build_flow(config, 1), part)[-1]) for part in x.split(16)]


@pytest.fixture
def make(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the trainer of the last stage, with flat tensors or without."""

    def trainer(flat: bool) -> StageTrainer:
        monkeypatch.setattr(cuda_graphs, "can_capture", lambda _: flat)
        flow = build_flow(config, 1)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[AtomicCheckpointIO()])
        found = StageTrainer(stage_names(flow)[-1], stage_modules(flow)[-1], stage_dims(flow)[-1], config, fabric)
        assert (len(found._weights.learnt) == 1) is flat
        return found

    return trainer


def take(trainer: StageTrainer, batches: list[Batch]) -> list[Tensor]:
    """Take steps. Return their losses, and the likelihoods of the averages."""
    losses = []
    for batch in batches:
        trainer.prepare()
        losses.append(trainer.train_step([batch]))
        trainer.step += 1
    with torch.no_grad():
        return [*losses, *(trainer.averaged.log_prob(*batch) for batch in batches)]  # type: ignore[operator]


def state(trainer: StageTrainer) -> dict[str, object]:
    return {
        "stage": trainer.stage.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "optimizer": trainer._weights.split(trainer.optimizer.state_dict())["state"],
    }


def test_flat_tensors_train_alike(make: Make, config: RunConfig, batches: list[Batch]) -> None:
    # The norm of the gradients is added up in another order. Batch normalisation leaves biases in front of it nothing
    # but rounding errors as gradients, which Adam takes for steps from the second one on.
    batches = batches[:1] if config.norm == "batch" else batches
    assert_close(take(make(True), batches), take(make(False), batches), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flat", [True, False], ids=["from flat", "from lists"])
def test_checkpoints_fit_both(flat: bool, make: Make, batches: list[Batch], tmp_path: Path) -> None:
    one, other, again = make(flat), make(not flat), make(flat)
    take(one, batches[:2])
    one.save(tmp_path / "one.ckpt")
    other.load(tmp_path / "one.ckpt")
    assert_close(state(other), state(one), rtol=0, atol=0)
    other.save(tmp_path / "other.ckpt")
    again.load(tmp_path / "other.ckpt")
    found, same, near = (take(trainer, batches[2:3]) for trainer in (one, again, other))
    assert_close(state(again), state(one), rtol=0, atol=0)
    assert_close(same, found, rtol=0, atol=0)
    assert_close(near, found, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_no_step_fits_both(make: Make, tmp_path: Path) -> None:
    for flat in (True, False):
        one, other = make(flat), make(not flat)
        one.save(tmp_path / "one.ckpt")
        other.load(tmp_path / "one.ckpt")
        assert_close(state(other), state(one), rtol=0, atol=0)


def test_counts_of_steps_do_not_share_memory(make: Make, batches: list[Batch]) -> None:
    trainer = make(True)
    take(trainer, batches[:1])
    entries = trainer._weights.split(trainer.optimizer.state_dict())["state"].values()
    steps: list[Tensor] = [entry["step"] for entry in entries]
    assert len({step.data_ptr() for step in steps}) == len(steps) == len([*trainer.stage.parameters()])


def test_views_are_apart_and_start_at_16_bytes(make: Make) -> None:
    trainer = make(True)
    for module in (trainer.stage, trainer.averaged):
        tensors = [x for x in module.state_dict().values() if x.is_floating_point() and x.numel()]
        assert all(x.data_ptr() % 16 == 0 for x in tensors)
        taken = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in tensors)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    assert len({x.untyped_storage().data_ptr() for x in trainer.stage.parameters()}) == 1


def test_only_scale_parameters_are_penalised(make: Make) -> None:
    trainer = make(True)
    scales = {id(p) for p in scale_parameters(trainer.stage)}
    before = [p.detach().clone() for p in trainer.stage.parameters()]
    for p in trainer.stage.parameters():
        p.grad = torch.zeros_like(p)
    trainer._weights.collect(0.5, 1e9)
    found = trainer._weights._flat.views(trainer._weights.learnt[0].grad, len(before))  # type: ignore[union-attr, arg-type]
    for p, grad, value in zip(trainer.stage.parameters(), found, before, strict=True):
        assert_close(grad, value if id(p) in scales else torch.zeros_like(value), rtol=0, atol=0)
