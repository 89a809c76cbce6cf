from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from pnf.data import Images, dequantize
from pnf.flows import scale_parameters
from pnf.training import RunConfig
from pnf.training.batches import Batch, seeded
from pnf.training.build import build_flow, stage_dims, stage_inputs, stage_modules, stage_names
from pnf.training.stage_trainer import StageTrainer, schedule

Make = Callable[..., RunConfig]


@pytest.fixture
def x(images: Images) -> Tensor:
    return dequantize(images.pixels[:16], seeded(0))


def units_of(config: RunConfig, fabric: Fabric) -> list[StageTrainer]:
    flow = build_flow(config, 1)
    parts = zip(stage_names(flow), stage_modules(flow), stage_dims(flow), strict=True)
    return [StageTrainer(name, stage, dims, config, fabric) for name, stage, dims in parts]


def inputs_of(config: RunConfig, x: Tensor) -> list[Batch]:
    return [Batch(part) for part in stage_inputs(build_flow(config, 1), x)]


def take(unit: StageTrainer, batches: list[Batch]) -> Tensor:
    """Take a step as the training loop does."""
    unit.prepare()
    nll = unit.train_step(batches)
    unit.step += 1
    return nll


def gradients_at_steps(unit: StageTrainer) -> list[dict[str, Tensor]]:
    """A list to which every step of the optimiser adds its gradients."""
    seen: list[dict[str, Tensor]] = []

    def look(*_: object) -> None:
        named = unit.stage.named_parameters()
        seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    unit.optimizer.optimizer.register_step_pre_hook(look)
    return seen


def test_the_learning_rate_warms_up_and_falls_to_zero(tiny: Make) -> None:
    config = tiny(steps=100, warmup=9)
    assert schedule(config, 0) == pytest.approx(0.1)
    assert schedule(config, 4) == pytest.approx(0.5 * (0.5 + 0.5 * math.cos(math.pi * 0.04)))
    assert schedule(config, 50) == pytest.approx(0.5)
    assert 0 < schedule(config, 99) < 3e-4
    factors = [schedule(config, step) for step in range(9, 100)]
    assert factors == sorted(factors, reverse=True)


def test_a_constant_learning_rate_warms_up_too(tiny: Make) -> None:
    config = tiny(steps=100, warmup=9, schedule="constant")
    assert schedule(config, 1) == pytest.approx(0.2)
    assert {schedule(config, step) for step in range(9, 100)} == {1.0}


def test_without_warmup_the_rate_starts_whole(tiny: Make) -> None:
    assert schedule(tiny(warmup=0), 0) == 1


def test_the_optimiser_gets_the_scheduled_rate(tiny: Make, fabric: Fabric, x: Tensor) -> None:
    config = tiny()
    unit = units_of(config, fabric)[0]
    for step in range(4):
        take(unit, inputs_of(config, x)[:1])
        assert unit.optimizer.param_groups[0]["lr"] == config.lr * schedule(config, step)


@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_the_penalty_touches_only_scale_parameters(tiny: Make, fabric: Fabric, x: Tensor, coupling: str) -> None:
    seen, losses = [], []
    for scale_l2 in (0.0, 0.5):
        config = tiny(model="realnvp", coupling=coupling, scale_l2=scale_l2, clip=1e9)
        unit = units_of(config, fabric)[0]
        with torch.no_grad():
            for p in unit.stage.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=seeded(1)))
        scales = {id(p) for p in scale_parameters(unit.stage)}
        before = {name: p.detach().clone() for name, p in unit.stage.named_parameters() if id(p) in scales}
        gradients = gradients_at_steps(unit)
        losses.append(take(unit, [Batch(x), Batch(x)]))
        seen.append(gradients[0])
    plain, penalised = seen
    assert before
    for name, gradient in plain.items():
        torch.testing.assert_close(penalised[name], gradient + before[name] if name in before else gradient)
    assert torch.equal(*losses), "the logged likelihood is without the penalty"


def test_a_step_takes_its_own_gradient_only(tiny: Make, fabric: Fabric, x: Tensor) -> None:
    unit = units_of(tiny(clip=1e9, scale_l2=0.0), fabric)[-1]
    seen = gradients_at_steps(unit)
    take(unit, [Batch(x)])
    for step in (1, 2):
        twin = copy.deepcopy(unit.stage)
        twin.zero_grad()
        (-twin.log_prob(x).mean()).backward()
        take(unit, [Batch(x)])
        for name, p in twin.named_parameters():
            torch.testing.assert_close(seen[step][name], p.grad)


def test_each_stage_is_clipped_by_itself(tiny: Make, fabric: Fabric, x: Tensor) -> None:
    config = tiny(clip=1e-3)
    for unit, image in zip(units_of(config, fabric), inputs_of(config, x), strict=True):
        seen = gradients_at_steps(unit)
        take(unit, [image])
        norm = torch.stack([gradient.square().sum() for gradient in seen[0].values()]).sum().sqrt()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny: Make, fabric: Fabric, x: Tensor) -> None:
    # Without ActNorm, which starts from the statistics of its first batch.
    config = tiny(norm="none")
    whole, halves = units_of(config, fabric)[-1], units_of(config, fabric)[-1]
    seen_whole, seen_halves = gradients_at_steps(whole), gradients_at_steps(halves)
    nll_whole, nll_halves = take(whole, [Batch(x)]), take(halves, Batch(x).split(8))
    torch.testing.assert_close(nll_whole, nll_halves)
    torch.testing.assert_close(seen_whole, seen_halves, rtol=1e-4, atol=1e-5)


def test_the_average_follows_the_weights(tiny: Make, fabric: Fabric, x: Tensor) -> None:
    config = tiny(ema=0.3)
    unit = units_of(config, fabric)[0]
    expected: dict[str, Tensor] = {}
    for step in range(6):
        take(unit, inputs_of(config, x)[:1])
        decay = min(0.3, (1 + step) / (10 + step)) if step else 0.0
        for name, p in unit.stage.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach() if step else p.detach().clone()
    for name, p in unit.averaged.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    moved = [(p - q).abs().max() for p, q in zip(unit.stage.parameters(), unit.averaged.parameters(), strict=True)]
    assert max(moved) > 0
    buffers = dict(unit.averaged.named_buffers())
    flags = {name: flag for name, flag in unit.stage.named_buffers() if not flag.is_floating_point()}
    assert all(torch.equal(buffers[name], flag) for name, flag in flags.items())
    assert any(flags.values())


def test_bf16_trains_and_leaves_likelihoods_in_float32(tiny: Make, fabric: Fabric, x: Tensor) -> None:
    config = tiny(precision="bf16", coupling="conv")
    flow = build_flow(config, 1).set_network_dtype(torch.bfloat16)
    stage, dims = stage_modules(flow)[-1], stage_dims(flow)[-1]
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    unit = StageTrainer("f1y", stage, dims, config, fabric)
    losses = [take(unit, [Batch(x)]).item() for _ in range(20)]
    assert losses[-1] < losses[0]
    assert any((p != before[name]).any() for name, p in unit.stage.named_parameters())
    for module in (unit.stage, unit.averaged):
        assert module.log_prob(x).dtype == torch.float32
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    full = build_flow(config, 1).stages[-1]
    full.load_state_dict(unit.stage.state_dict())
    assert (full.log_prob(x) != unit.stage.log_prob(x)).any()
