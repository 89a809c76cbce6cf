"""Muon against its formula, matrix by matrix, and against Adam where there is no matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.testing import assert_close

from pnf.data import Images
from pnf.flows import weight_matrices
from pnf.training import RunConfig
from pnf.training.batches import Batches
from pnf.training.build import build_flow, stage_dims, stage_modules, stage_names
from pnf.training.muon import ITERATIONS, MOMENTUM, QUINTIC, Muon, Stack, orthogonal
from pnf.training.stage_trainer import StageTrainer
from pnf.training.weights import Weights


def one_by_one(matrix: Tensor) -> Tensor:
    """The same polynomial of the singular values of one matrix, by its singular value decomposition."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return (u @ s.diag() @ vh).float()


@pytest.mark.parametrize("shape", [(3, 4, 10), (2, 10, 4), (2, 6, 6), (1, 2, 300)])
def test_the_singular_values_move_near_1(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(x)
    assert_close(found, torch.stack([one_by_one(m) for m in x]), rtol=1e-4, atol=1e-4)
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    assert values[:, 0].min() > 0.6


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_scale_does_not_matter(scale: float) -> None:
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    assert_close(orthogonal(scale * x), orthogonal(x), rtol=1e-4, atol=1e-5)


def test_zero_stays_zero() -> None:
    assert_close(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4), rtol=0, atol=0)


def test_a_step_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    # 5 entries, padded to 8, two matrices of 3 x 5, padded to 16, and one of 6 x 2.
    flat = nn.Parameter(torch.randn(52, generator=generator))
    optimizer = Muon([flat], [Stack(8, 2, 3, 5, 16), Stack(40, 1, 6, 2, 12)], lr=0.1)
    places = [(8, 3, 5, 1.0), (24, 3, 5, 1.0), (40, 6, 2, 3**0.5)]
    vector = nn.Parameter(flat.detach()[:8].clone())
    adam = torch.optim.Adam([vector], lr=0.1)
    matrices = [flat.detach()[at : at + r * c].view(r, c).clone() for at, r, c, _ in places]
    averages = [torch.zeros_like(m) for m in matrices]
    for _ in range(4):
        flat.grad = torch.randn(52, generator=generator)
        vector.grad = flat.grad[:8].clone()
        for (at, r, c, factor), matrix, average in zip(places, matrices, averages, strict=True):
            grad = flat.grad[at : at + r * c].view(r, c)
            average.mul_(MOMENTUM).add_(grad, alpha=1 - MOMENTUM)
            matrix -= 0.1 * factor * one_by_one(MOMENTUM * average + (1 - MOMENTUM) * grad)
        adam.step()
        optimizer.step()
    assert_close(flat[:8], vector, rtol=1e-5, atol=1e-6)
    for (at, r, c, _), matrix in zip(places, matrices, strict=True):
        assert_close(flat[at : at + r * c].view(r, c), matrix, rtol=1e-4, atol=1e-4)


def test_a_loaded_count_of_steps_goes_to_the_device() -> None:
    flat = nn.Parameter(torch.ones(4))
    optimizer = Muon([flat], [], lr=0.1)
    flat.grad = torch.ones(4)
    optimizer.step()
    there = nn.Parameter(torch.ones(4, device="meta"))
    other = Muon([there], [], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert {value.device.type for value in other.state[there].values()} == {"meta"}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("settings", [{"coupling": "conv", "norm": "batch"}, {"coupling": "dense"}], ids=str)
def test_stacks_hold_every_matrix_once(settings: dict[str, object], last: bool, tiny: Callable[..., RunConfig]) -> None:
    stage = stage_modules(build_flow(tiny(**settings), 1))[-1]
    if last:
        stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = [p.detach().clone() for p in stage.parameters()]
    averaged = stage_modules(build_flow(tiny(**settings), 1))[-1]
    weights = Weights(stage, averaged, torch.device("cpu"), matrices=True)
    for p, value in zip(stage.parameters(), before, strict=True):
        assert_close(p.detach(), value, rtol=0, atol=0)
    (flat,) = weights.learnt
    for stack in weights.stacks:
        stack.of(flat.detach()).fill_(7)
    matrices = {id(p) for p in weight_matrices(stage)}
    assert matrices
    for p in stage.parameters():
        assert (p == 7).all() if id(p) in matrices else (p != 7).all()


@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_a_checkpoint_goes_on_with_the_same_bits(
    coupling: str, tiny: Callable[..., RunConfig], images: Images, fabric: Fabric, tmp_path: Path
) -> None:
    config = tiny(coupling=coupling, optimizer="muon", lr=0.01)
    batches = Batches(images, 16, 0, flip=False)

    def trainer() -> StageTrainer:
        flow = build_flow(config, 1)
        return StageTrainer(stage_names(flow)[-1], stage_modules(flow)[-1], stage_dims(flow)[-1], config, fabric)

    def take(trainer: StageTrainer) -> Tensor:
        trainer.prepare()
        loss = trainer.train_step([batches(0)])
        trainer.step += 1
        return loss

    one, other = trainer(), trainer()
    losses = [take(one) for _ in range(8)]
    assert losses[-1] < losses[0]
    one.save(tmp_path / "one.ckpt")
    other.load(tmp_path / "one.ckpt")
    assert_close([take(other), take(other)], [take(one), take(one)], rtol=0, atol=0)
    assert_close(other.stage.state_dict(), one.stage.state_dict(), rtol=0, atol=0)
    assert_close(other.averaged.state_dict(), one.averaged.state_dict(), rtol=0, atol=0)
