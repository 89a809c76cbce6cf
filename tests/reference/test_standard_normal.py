"""The prior, against torch.distributions."""

import pytest
import torch
from torch.distributions import Normal

from pnf.reference import standard_normal


@pytest.mark.parametrize("shape", [(3,), (3, 5), (2, 3, 4, 5), (2, 0), (0, 4)])
def test_is_the_sum_of_normal_log_densities(shape: tuple[int, ...]) -> None:
    z = 3 * torch.randn(*shape, dtype=torch.float64)
    want = Normal(0.0, 1.0).log_prob(z).reshape(shape[0], -1 if z.numel() else 0).sum(1)
    torch.testing.assert_close(standard_normal(z), want.double(), rtol=1e-12, atol=1e-12)


def test_integrates_to_one() -> None:
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(1)
    assert standard_normal(z).exp().sum().item() * 24 / 4000 == pytest.approx(1, abs=1e-12)
