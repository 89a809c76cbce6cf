from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from pnf.data import Images
from pnf.flows import ProgressiveFlow
from pnf.reference import ProgressiveFlow as Reference
from pnf.training import RunConfig
from pnf.training.batches import hold_out, seeded
from pnf.training.scales import auroc, scores, typical_images, upscaled, upscaling_quality


@pytest.fixture(scope="module")
def flow() -> ProgressiveFlow:
    torch.manual_seed(0)
    return Reference((3, 16, 16), 2, coupling="dense", hidden=8, blocks=1, num_couplings=2).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(6, 3, 16, 16, generator=seeded(0))


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = seeded(1)
    own = torch.randn(60, generator=generator, dtype=torch.float64)
    foreign = torch.randn(50, generator=generator, dtype=torch.float64) - 0.7
    # Far beyond where a sigmoid tells numbers apart, and with ties.
    own, foreign = (1e4 * (10 * scores).round() + 1e5 for scores in (own, foreign))
    pairs = own[:, None] - foreign
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item()
    assert auroc(own, foreign) == pytest.approx(expected, abs=1e-6)
    assert auroc(foreign, own) == pytest.approx(1 - expected, abs=1e-6)


def test_auroc_of_equal_scores_is_a_guess() -> None:
    assert auroc(torch.ones(3), torch.ones(4)) == pytest.approx(0.5)


def test_the_scores_are_what_they_say() -> None:
    generator = seeded(2)
    mixed = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 2.0]], dtype=torch.float64)
    typical = torch.randn(400, 3, generator=generator, dtype=torch.float64) @ mixed + 5
    log_probs = torch.randn(7, 3, generator=generator, dtype=torch.float64) @ mixed + 5
    found = scores(log_probs, typical, ["f0", "f1x", "f1y"])
    assert {measure: list(values) for measure, values in found.items()} == {
        "image": ["f0", "f1x", "f1y"],
        "stage": ["f0", "f1x", "f1y"],
        "typicality": ["f0", "f1x", "f1y", "all"],
    }
    torch.testing.assert_close(found["image"]["f1x"], log_probs[:, :2].sum(1))
    torch.testing.assert_close(found["stage"]["f1x"], log_probs[:, 1])
    torch.testing.assert_close(found["typicality"]["f1y"], -(log_probs[:, 2] - typical[:, 2].mean()).abs())
    inverse = torch.linalg.inv(torch.cov(typical.T))
    centred = log_probs - typical.mean(0)
    expected = -torch.stack([row @ inverse @ row for row in centred])
    torch.testing.assert_close(found["typicality"]["all"], expected)


def test_typicality_of_one_stage_is_in_one_order_with_that_of_all() -> None:
    log_probs, typical = (torch.randn(n, 1, generator=seeded(n), dtype=torch.float64) for n in (9, 50))
    found = scores(log_probs, typical, ["f"])["typicality"]
    assert torch.equal(found["f"].argsort(), found["all"].argsort())


def test_typical_images_are_those_held_out(tiny: Callable[..., RunConfig], images: Images) -> None:
    held_out = hold_out(images.pixels, 20, 0)[1]
    assert torch.equal(typical_images(tiny(), images).pixels, held_out)
    assert torch.equal(typical_images(tiny(validation=0), images).pixels, images.pixels)


def test_upscaled_images_downscale_to_what_they_came_from(flow: ProgressiveFlow, x: torch.Tensor) -> None:
    with torch.no_grad():
        low = flow.encode(x)
        found = upscaled(flow, low, 3, seeded(0))
        assert list(found) == ["bilinear", "bicubic", "zero noise", "mean of draws"]
        assert {image.shape for image in found.values()} == {x.shape}
        for method in ("zero noise", "mean of draws"):
            torch.testing.assert_close(flow.encode(found[method]), low)


def test_quality_is_that_of_the_definition(flow: ProgressiveFlow, x: torch.Tensor) -> None:
    found = upscaling_quality(flow, x.split(4), draws=2)
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
    found = upscaling_quality(flow, [torch.full((2, 3, 16, 16), 0.5)], draws=1)
    quality = found["f0"]["bilinear"]
    assert (quality.psnr, quality.rmse) == (pytest.approx(100), 0)
    assert quality.ssim == pytest.approx(1)


def test_the_draws_belong_to_the_seed(flow: ProgressiveFlow, x: torch.Tensor) -> None:
    first, again, other = (upscaling_quality(flow, [x], draws=1, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["f0"]["mean of draws"] != other["f0"]["mean of draws"]
    assert first["f0"]["zero noise"] == other["f0"]["zero noise"]
