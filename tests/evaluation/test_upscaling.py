from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from pnf.evaluation.upscaling import upscaled, upscaling_quality
from pnf.flows import ProgressiveFlow
from pnf.reference import ProgressiveFlow as Reference
from pnf.training.batches import Batch, seeded


@pytest.fixture(scope="module")
def flow() -> ProgressiveFlow:
    torch.manual_seed(0)
    return Reference((3, 16, 16), 2, coupling="dense", hidden=8, blocks=1, num_couplings=2).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=seeded(0))


def test_upscaled_images_downscale_to_what_they_came_from(flow: ProgressiveFlow, x: torch.Tensor) -> None:
    with torch.no_grad():
        low = flow.encode(x)
        found = upscaled(flow, low, 3, seeded(0))
        assert list(found) == ["bilinear", "bicubic", "zero noise", "mean of draws"]
        assert {image.shape for image in found.values()} == {x.shape}
        for method in ("zero noise", "mean of draws"):
            torch.testing.assert_close(flow.encode(found[method]), low)


def test_quality_is_that_of_the_definition(flow: ProgressiveFlow, x: torch.Tensor) -> None:
    found = upscaling_quality(flow, Batch(x).split(4), draws=2)
    assert list(found) == ["f0", "f1x", "f1y", "f2x"]
    for name, size in (("f0", (4, 4)), ("f2x", (8, 16))):
        low = functional.adaptive_avg_pool2d(x, size)
        mse = (functional.interpolate(low, (16, 16), mode="bilinear") - x).square().mean((1, 2, 3)).double()
        psnr = -10 * mse.log10()
        quality = found[name]["bilinear"]
        assert quality.psnr == pytest.approx(psnr.mean().item(), rel=1e-5)
        assert quality.psnr_error == pytest.approx(psnr.std().item() / math.sqrt(6), rel=1e-4)
        assert quality.rmse == pytest.approx(mse.mean().sqrt().item(), rel=1e-5)
        assert -1 <= quality.ssim <= 1
    with torch.no_grad():
        error = (flow.project(x) - x).square().mean().sqrt().item()
    assert found["f0"]["zero noise"].rmse == pytest.approx(error, rel=1e-5)


def test_what_is_upscaled_without_error_has_the_best_quality(flow: ProgressiveFlow) -> None:
    found = upscaling_quality(flow, [Batch(torch.full((2, 3, 16, 16), 0.5))], draws=1)
    quality = found["f0"]["bilinear"]
    assert (quality.psnr, quality.rmse) == (pytest.approx(100), 0)
    assert quality.ssim == pytest.approx(1)


def test_the_draws_belong_to_the_seed(flow: ProgressiveFlow, x: torch.Tensor) -> None:
    first, again, other = (upscaling_quality(flow, [Batch(x)], draws=1, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["f0"]["mean of draws"] != other["f0"]["mean of draws"]
    assert first["f0"]["zero noise"] == other["f0"]["zero noise"]
