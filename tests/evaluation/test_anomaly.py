from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pnf.data import Images
from pnf.evaluation.anomaly import auroc, scores, typical_images
from pnf.training import RunConfig
from pnf.training.batches import hold_out, seeded


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = seeded(1)
    own = torch.randn(60, generator=generator, dtype=torch.float64)
    foreign = torch.randn(50, generator=generator, dtype=torch.float64) - 0.7
    # So large that a sigmoid would make them equal, and with ties.
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
    held_out = hold_out(images, 20, 0)[1].pixels
    assert torch.equal(typical_images(tiny(), images).pixels, held_out)
    assert torch.equal(typical_images(tiny(validation=0), images).pixels, images.pixels)
