"""Each layer of a flow alone."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from tensors import normal
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from pnf.flows.couplings import ActNorm, BatchNormFlow, ConvCoupling, DenseCoupling, Injector, make_norm
from pnf.flows.networks import NETWORK_EPS, ConvNetwork
from pnf.reference import OPS

NORMS = ("act", "batch", "none")
Randomise = Callable[..., nn.Module]
LogAbsDet = Callable[..., Tensor]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
@pytest.mark.parametrize("condition", [0, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("mask", "parity"), [(m, p) for m in ("checkerboard", "channel") for p in (0, 1)])
def test_conv_coupling(
    mask: str,
    parity: int,
    norm: str,
    condition: int,
    kernel: tuple[int, int],
    randomise: Randomise,
    log_abs_det: LogAbsDet,
) -> None:
    size = (1, 5) if kernel == (1, 3) else (3, 4)
    layer = ConvCoupling(2, condition, mask, parity, hidden=4, blocks=1, kernel=kernel, norm=norm, ops=OPS)
    layer = randomise(layer.double()).eval()
    x, log_det = normal(2, 2, *size), normal(2)
    seen = normal(2, condition, *size) if condition else None
    y, total = layer(x, log_det, seen)
    back, zero = layer.inverse(y, total, seen)
    close(back, x)
    close(zero, log_det)
    close(total - log_det, log_abs_det(lambda x, seen: layer(x, x.new_zeros(1), seen)[0], x, seen))
    kept = OPS.mask_pack(x, mask, parity)[0]
    assert torch.equal(OPS.mask_pack(y, mask, parity)[0], kept)
    assert not torch.isclose(y, x).all()


@pytest.mark.parametrize("condition", [0, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_dense_coupling(kept: int, norm: str, condition: int, randomise: Randomise, log_abs_det: LogAbsDet) -> None:
    layer = DenseCoupling(kept, 3, condition, hidden=5, layers=2, norm=norm, ops=OPS)
    layer = randomise(layer.double()).eval()
    x, other, log_det = normal(2, 3), normal(2, kept), normal(2)
    seen = normal(2, condition) if condition else None
    y, total = layer(x, other, log_det, seen)
    back, zero = layer.inverse(y, other, total, seen)
    close(back, x)
    close(zero, log_det)
    want = log_abs_det(lambda x, other, seen: layer(x, other, x.new_zeros(1), seen)[0], x, other, seen)
    close(total - log_det, want)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
def test_injector(kernel: tuple[int, int], randomise: Randomise, log_abs_det: LogAbsDet) -> None:
    size = (1, 5) if kernel == (1, 3) else (3, 4)
    layer = Injector(2, ConvNetwork(3, 4, hidden=4, layers=2, kernel=kernel), OPS).double()
    x, log_det, seen = normal(2, 2, *size), normal(2), normal(2, 3, *size)
    y, total = layer(x, log_det, seen)
    close(y, x)
    close(total, log_det)
    randomise(layer)
    y, total = layer(x, log_det, seen)
    back, zero = layer.inverse(y, total, seen)
    close(back, x)
    close(zero, log_det)
    close(total - log_det, log_abs_det(lambda x, seen: layer(x, x.new_zeros(1), seen)[0], x, seen))
    # The map is affine and depends only on the condition.
    middle, _ = layer((x + 3) / 2, log_det, seen)
    close(middle, (y + layer(torch.full_like(x, 3), log_det, seen)[0]) / 2)


@pytest.mark.parametrize("name", ["act", "batch"])
@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4), (3, 2, 2, 3)])
def test_norms(name: str, shape: tuple[int, ...], randomise: Randomise, log_abs_det: LogAbsDet) -> None:
    norm = randomise(make_norm(name, 2, OPS).double()).eval()
    x, log_det = normal(*shape), normal(3)
    y, total = norm(x, log_det)
    back, zero = norm.inverse(y, total)
    close(back, x)
    close(zero, log_det)
    close(total - log_det, log_abs_det(lambda x: norm(x, x.new_zeros(1))[0], x))


@pytest.mark.parametrize("name", ["act", "batch"])
@pytest.mark.parametrize("shape", [(64, 2), (16, 2, 5), (16, 2, 3, 3)])
def test_the_first_training_batch_comes_out_with_mean_0_and_variance_1(name: str, shape: tuple[int, ...]) -> None:
    x = 3 + 5 * normal(*shape)
    norm = make_norm(name, 2, OPS).double().train()
    y, total = norm(x, x.new_zeros(shape[0]))
    dims = [d for d in range(x.dim()) if d != 1]
    torch.testing.assert_close(y.mean(dims), x.new_zeros(2), rtol=0, atol=1e-9)
    # BatchNormFlow adds 1e-4 to a variance of 25.
    torch.testing.assert_close(y.var(dims, correction=0), x.new_ones(2), rtol=0, atol=1e-5)
    want = -0.5 * math.prod(shape[2:]) * (x.var(dims, correction=0) + (name == "batch") * NETWORK_EPS).log().sum()
    close(total, want.expand(shape[0]))


def test_act_norm_is_set_by_the_first_training_batch_only() -> None:
    norm = ActNorm(2, OPS).double()
    norm.eval()(normal(8, 2), normal(8))
    assert not norm.initialized
    norm.train()(normal(0, 2), normal(0))
    assert not norm.initialized
    norm(7 + normal(8, 2), normal(8))
    assert norm.initialized
    before = copy.deepcopy(norm.state_dict())
    norm(normal(8, 2), normal(8))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), norm.state_dict().values(), strict=True))


def test_act_norm_trains_what_its_first_batch_set() -> None:
    norm = ActNorm(2, OPS).double().train()
    y, log_det = norm(normal(8, 2), normal(8))
    (y.square().sum() + log_det.sum()).backward()
    assert norm.shift.grad.isfinite().all()
    assert norm.log_scale.grad.isfinite().all()


def by_state_dict(norm: ActNorm) -> ActNorm:
    other = ActNorm(2, OPS).double().train()
    # The copy has read its own flag before it gets another.
    other(normal(8, 2), normal(8))
    other.load_state_dict(norm.state_dict())
    return other


def by_pickle(norm: ActNorm) -> ActNorm:
    file = io.BytesIO()
    torch.save(norm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [by_state_dict, by_pickle, copy.deepcopy])
@pytest.mark.parametrize("ready", [False, True])
def test_act_norm_s_flag_travels(ready: bool, way: Callable[[ActNorm], ActNorm]) -> None:
    norm = ActNorm(2, OPS).double().train()
    if ready:
        norm(normal(8, 2), normal(8))
    other = way(norm).train()
    assert bool(other.initialized) == ready
    before = other.shift.clone()
    other(9 + normal(8, 2), normal(8))
    assert torch.equal(other.shift, before) == ready


@pytest.mark.parametrize(("batch", "floor"), [(2, 1 / 2), (3, 1 / 4), (8, 1 / 128), (64, 0.0)])
def test_few_entries_say_little_about_their_deviation(batch: int, floor: float) -> None:
    x = normal(batch, 4) * torch.tensor([1.0, 1e-3, 1e-5, 0.0]).double()
    norm = ActNorm(4, OPS).double().train()
    y, _ = norm(x, normal(batch))
    want = x.std(0, correction=0).clamp(min=floor)
    close(norm.log_scale[:3], -want[:3].log())
    # A constant channel is left unchanged.
    assert norm.log_scale[3] == 0
    assert y.std(0, correction=0).max() < 1 + 1e-9


def test_act_norm_s_flag_belongs_to_the_state_in_use() -> None:
    norm = ActNorm(2, OPS).double().train()
    state = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = 3 + 5 * normal(8, 2)
    with torch.no_grad():
        functional_call(norm, state, (x, normal(8)))
    assert state["initialized"]
    close(state["shift"], -x.mean(0))
    assert not norm.initialized
    assert torch.equal(norm.shift, torch.zeros_like(norm.shift))
    norm(7 + x, normal(8))
    close(norm.shift, -(7 + x).mean(0))
    # The old state again, and a new one. Each follows its own flag.
    with torch.no_grad():
        functional_call(norm, state, (9 + x, normal(8)))
        close(state["shift"], -x.mean(0))
        new = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        functional_call(norm, new, (9 + x, normal(8)))
    close(new["shift"], -(9 + x).mean(0))
    norm(x, normal(8))
    close(norm.shift, -(7 + x).mean(0))


def test_stacked_states_are_set_one_by_one() -> None:
    ready, new = ActNorm(2, OPS).double().train(), ActNorm(2, OPS).double().train()
    ready(normal(8, 2), normal(8))
    before, x = ready.shift.detach().clone(), 3 + normal(8, 2)
    with torch.no_grad():
        parameters, buffers = stack_module_state([ready, new])
        vmap(lambda p, b: functional_call(new, (p, b), (x, x.new_zeros(8)))[0])(parameters, buffers)
    close(parameters["shift"].detach(), torch.stack((before, -x.mean(0))))
    assert not new.initialized


def test_a_new_act_norm_inside_a_transform_tells_of_the_first_batch() -> None:
    norm = ActNorm(2, OPS).double().train()
    with pytest.raises(RuntimeError, match=r"ActNorm: the first batch .* outside of torch.func"):
        grad(lambda x: norm(x, x.new_zeros(8))[0].sum())(normal(8, 2))
    norm(normal(8, 2), normal(8))
    grad(lambda x: norm(x, x.new_zeros(8))[0].sum())(normal(8, 2))


def test_data_parallel_replicas_are_not_set_and_forgotten() -> None:
    replica = ActNorm(2, OPS).double().train()._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match=r"ActNorm: .*DataParallel would forget.*DistributedDataParallel"):
        replica(normal(8, 2), normal(8))


def test_batch_norm_moves_its_statistics_by_a_tenth_a_step() -> None:
    norm, x = BatchNormFlow(2, OPS).double().train(), 3 + 5 * normal(32, 2, 4)
    norm(x, normal(32))
    mean, var = x.mean((0, 2)), x.var((0, 2), correction=0)
    close(norm.running_mean, 0.1 * mean)
    close(norm.running_var, 0.9 + 0.1 * var)
    norm.eval()(x, normal(32))
    norm.inverse(x, normal(32))
    close(norm.running_mean, 0.1 * mean)
