"""Batch normalisation as a layer of a flow: the compiled op against the reference."""

import math
from typing import Any

import pytest
import torch
from op_tests import LAYOUTS, Case, Implementation, OpTests, implementations
from tensors import normal

from pnf import ops, reference

SHAPES = [(3, 5, 3, 7), (40, 2), (2, 17, 9), (1030, 3)]
# Rows of even and of odd length, an odd number of sites, and one pair of them.
HALVES = [
    ("checkerboard", 0, (13, 5, 4, 6)),
    ("checkerboard", 1, (13, 3, 6, 5)),
    ("channel", 0, (23, 6, 3, 2)),
    ("checkerboard", 0, (12, 2, 3, 3)),
    ("channel", 1, (70, 4)),
    ("checkerboard", 1, (40, 3, 2)),
]
EPS = 1e-3


def forward(*shape: int, given: bool = False, mask: str | None = None, parity: int = 0) -> list[Any]:
    """Arguments whose channels have different means, large and small."""
    centre = (3 - 2 * torch.arange(shape[1], dtype=torch.float64)).view(-1, *(1,) * (len(shape) - 2))
    channels = shape[1] // 2 if mask == "channel" else shape[1]
    statistics = (normal(channels), normal(channels).square()) if given else (None, None)
    return [normal(*shape) + centre, normal(shape[0]), *statistics, EPS, mask, parity]


def backward(*shape: int, batch: bool, mask: str | None = None, parity: int = 0) -> list[Any]:
    x, log_det, *_ = forward(*shape)
    _, _, mean, var = reference.batch_norm(x, log_det, mask=mask, parity=parity)
    return [normal(*shape), normal(shape[0]), x, mean, var, EPS, mask, parity, batch]


class TestBatchNorm(OpTests):
    # Alone, the backward does not know that the statistics of a batch depend on x.
    cases = {
        **{f"batch {shape}": Case("batch_norm", lambda s=shape: forward(*s)) for shape in SHAPES},
        **{
            f"given {shape}": Case("batch_norm", lambda s=shape: forward(*s, given=True), differentiable=False)
            for shape in [(40, 2), (1, 1, 1), (0, 3, 2), (2, 0, 3)]
        },
        **{
            f"backward {batch} {shape}": Case(
                "batch_norm_backward", lambda s=shape, b=batch: backward(*s, batch=b), differentiable=False
            )
            for batch in (True, False)
            for shape in SHAPES[:2]
        },
        **{
            f"{mask} {parity} {shape}": Case(
                "batch_norm", lambda s=shape, m=mask, p=parity: forward(*s, mask=m, parity=p)
            )
            for mask, parity, shape in HALVES
        },
        **{
            f"{mask} {parity} given {shape}": Case(
                "batch_norm",
                lambda s=shape, m=mask, p=parity: forward(*s, given=True, mask=m, parity=p),
                differentiable=False,
            )
            for mask, parity, shape in [HALVES[0], HALVES[3], ("checkerboard", 0, (2, 3, 1)), HALVES[4]]
        },
        **{
            f"backward {mask} {parity} {batch} {shape}": Case(
                "batch_norm_backward",
                lambda s=shape, b=batch, m=mask, p=parity: backward(*s, batch=b, mask=m, parity=p),
                differentiable=False,
            )
            for batch in (True, False)
            for mask, parity, shape in (HALVES[1], HALVES[2], HALVES[4])
        },
    }


every_implementation = pytest.mark.parametrize("implementation", implementations("batch_norm"), ids=str)


@every_implementation
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_channels_far_from_zero(implementation: Implementation, layout: str) -> None:
    torch.manual_seed(0)
    x = LAYOUTS[layout]((torch.randn(5, 70, 9, 11) + 1e3).to(implementation.device))
    log_det = torch.zeros(5, device=implementation.device)
    y, log_det, mean, var = implementation.run("batch_norm", [x, log_det, None, None, EPS, None, 0])
    want_var, want_mean = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    torch.testing.assert_close(mean.double(), want_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), want_var, rtol=4e-6, atol=0)
    gain = -0.5 * 99 * (want_var + EPS).log().sum()
    torch.testing.assert_close(log_det.double(), gain.expand(5), rtol=0, atol=1e-3)
    assert y.mean().abs() < 1e-4


@every_implementation
def test_a_constant_channel_without_eps_has_no_density(implementation: Implementation) -> None:
    x, log_det = torch.ones(2, 1, 3, device=implementation.device), torch.zeros(2, device=implementation.device)
    assert (implementation.run("batch_norm", [x, log_det, None, None, 0.0, None, 0])[1] == math.inf).all()


@pytest.mark.parametrize("function", [ops.batch_norm, reference.batch_norm], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(3)}, ValueError, r"x must be \[B, C, ...\], got \[3\]"),
        ({"x": torch.ones(2, 3, dtype=torch.long)}, TypeError, "x must be a floating Tensor"),
        ({"log_det": torch.ones(3)}, ValueError, r"log_det must be \[2\], got \[3\]"),
        ({"mean": torch.ones(3)}, ValueError, "mean and var must be given together, got mean only"),
        ({"mean": torch.ones(3), "var": torch.ones(2)}, ValueError, r"var must be \[3\], got \[2\]"),
        ({"x": torch.ones(2, 3, 0)}, ValueError, "x must have at least one entry per channel"),
        ({"x": torch.ones(2, 3, 1), "mask": "checkerboard"}, ValueError, "x must have at least one entry per channel"),
        ({"x": torch.ones(2, 3, 1), "mask": "channel"}, ValueError, "an even number of channels"),
        ({"x": torch.ones(2, 2), "mask": "channel", "mean": torch.ones(2), "var": torch.ones(2)}, ValueError, r"\[1\]"),
        ({"mask": "rows"}, ValueError, "mask must be"),
    ],
)
def test_names_the_mistake(function: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(**({"x": torch.ones(2, 3), "log_det": torch.zeros(2)} | changes))
