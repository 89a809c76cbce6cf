"""Flows on the lattice of 8-bit images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from pnf import fast, reference
from pnf.data import dequantize, load
from pnf.flows.progressive import whole_mean

SMALL: dict[str, Any] = {"hidden": 4, "blocks": 1, "num_couplings": 2, "lattice": True}

every_shape = pytest.mark.parametrize(
    ("shape", "levels", "axes"),
    [
        ((8,), 2, "xy"),
        ((2, 6), 1, "xy"),
        ((1, 4, 4), 1, "yx"),
        ((3, 4, 8), 2, "x"),
        ((1, 8, 8), 2, "xy"),
        ((3, 3, 5), 0, "xy"),
    ],
)
every_coupling = pytest.mark.parametrize("coupling", ["conv", "dense"])

Make = Callable[..., reference.ProgressiveFlow]


@pytest.fixture
def make(randomise: Callable[..., nn.Module]) -> Make:
    return lambda shape, levels, **kw: randomise(
        reference.ProgressiveFlow(shape, levels, **SMALL | kw).double(), 0.1
    ).eval()


def test_whole_mean() -> None:
    levels = 256
    k = torch.randint(levels, (5, 8))
    coarser, pairs = reference.lattice_split((k + torch.rand(5, 8, dtype=torch.float64)) / levels, levels, -1)
    assert_close(whole_mean(coarser, levels), reference.haar_split(pairs, -1)[0])
    assert_close(whole_mean(coarser, levels), (k[:, ::2] + k[:, 1::2] + 1).double() / (2 * levels))


@every_coupling
@every_shape
def test_is_a_bijection_with_its_log_det(
    shape: tuple[int, ...], levels: int, axes: str, coupling: str, make: Make, log_abs_det: Callable[..., Tensor]
) -> None:
    flow = make(shape, levels, axes=axes, coupling=coupling)
    x = torch.rand(2, *shape, dtype=torch.float64)
    z, log_det = flow(x)
    assert_close(log_det, log_abs_det(lambda x: flow(x)[0], x))
    back, log_det_back = flow.inverse(z)
    assert_close(back, x, rtol=0, atol=1e-8)
    assert_close(log_det_back, -log_det)
    shares = flow.stage_log_probs(x)
    assert_close(shares.sum(1), flow.log_prob(x))
    for k, size in enumerate(flow.stage_dims):
        assert_close(flow.stage_loss(x, k), -shares[:, k].mean() / size)


@every_coupling
@every_shape
def test_down_and_up(shape: tuple[int, ...], levels: int, axes: str, coupling: str, make: Make) -> None:
    flow = make(shape, levels, axes=axes, coupling=coupling)
    x, last = torch.rand(2, *shape, dtype=torch.float64), len(flow.stages) - 1
    for k in range(last + 1):
        image = flow.downsample(x, last - k)
        assert tuple(image.shape[1:]) == flow.stage_shapes[k]
        for noise in (None, 0):
            grown = flow.upsample(image, noise=noise)
            assert 0 <= grown.min() <= grown.max() <= 1
            assert_close(flow.downsample(grown, last - k), image, rtol=0, atol=1e-6)
    once = flow.project(x)
    assert_close(flow.project(once), once, rtol=0, atol=1e-6)


@every_coupling
def test_derivatives_and_transforms(coupling: str, make: Make) -> None:
    flow = make((1, 4, 4), 1, coupling=coupling)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64).requires_grad_()
    assert gradcheck(flow.log_prob, x, eps=1e-8, atol=1e-3)
    (want,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    got = torch.vmap(torch.func.grad(lambda x: flow.log_prob(x.unsqueeze(0))[0]))(x.detach())
    assert_close(got, want)


@every_coupling
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_black_white_and_checkered_images_are_finite(coupling: str, dtype: torch.dtype, make: Make) -> None:
    flow = make((1, 8, 8), 2, coupling=coupling).to(dtype)
    x = torch.zeros(4, 1, 8, 8, dtype=dtype)
    x[1], x[2, ..., ::2], x[3, :, ::2] = 1, 1, 1
    x.requires_grad_()
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    for temperature in (0.0, 1.0, 50.0):
        samples = flow.sample(3, temperature=temperature)
        assert 0 <= samples.min() <= samples.max() <= 1
        assert flow.log_prob(samples).isfinite().all()


@every_coupling
def test_equals_the_reference(coupling: str, randomise: Callable[..., nn.Module]) -> None:
    images = dequantize(load("fashion-mini", "train", 16, limit=8).pixels)
    flow = reference.ProgressiveFlow((1, 16, 16), 2, coupling=coupling, **SMALL)
    flow.train()(images)
    randomise(flow, 0.1)
    twin = fast.ProgressiveFlow((1, 16, 16), 2, coupling=coupling, **SMALL)
    twin.load_state_dict(flow.state_dict())
    for model in (flow, twin):
        model.eval()
    want = flow.log_prob(images)
    assert_close(twin.log_prob(images), want, rtol=1e-5, atol=0)
    assert torch.equal(twin.encode(images), flow.encode(images))


def test_an_image_survives_at_8_bits(make: Make) -> None:
    pixels = load("fashion-mini", "train", 16, limit=64).pixels
    x = dequantize(pixels, torch.Generator().manual_seed(0))
    flow = make((1, 16, 16), 2, coupling="dense").float()
    assert (flow.inverse(flow(x)[0])[0] - x).abs().max() < 1 / 512


def test_is_saved_with_the_flow(tmp_path: Any, make: Make) -> None:
    flow = make((1, 4, 4), 1, coupling="dense").float()
    flow.save_pretrained(tmp_path)
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(reference.ProgressiveFlow.from_pretrained(tmp_path).log_prob(x), flow.log_prob(x))


def test_the_base_starts_at_the_width_of_a_level() -> None:
    assert reference.ProgressiveFlow((1, 8, 8), 2, coupling="dense", **SMALL).alpha == 1 / (255 * 16 + 1)


@pytest.mark.parametrize("settings", [{"detail": "identity"}, {"support": "real"}], ids=str)
def test_only_images_have_levels(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='lattice must be False with detail="identity"'):
        reference.ProgressiveFlow((1, 4, 4), 1, **SMALL | settings)


def test_levels_leave_bits_for_noise() -> None:
    with pytest.raises(ValueError, match="on the lattice there are at most 12 steps, got 13"):
        reference.ProgressiveFlow((2**13,), 13, coupling="dense", **SMALL)
