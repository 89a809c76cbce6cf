"""Weight normalisation against its definition and the layers of the networks."""

import torch
from torch.nn.functional import conv2d

from pnf.flows.networks import WeightNormConv2d
from pnf.reference import weight_norm


def test_rows_have_the_magnitude_as_their_norm() -> None:
    direction, magnitude = torch.randn(4, 3, 3, 3).double(), torch.rand(4, 1, 1, 1).double()
    with_magnitude, without = weight_norm([direction, direction], [magnitude, None])
    torch.testing.assert_close(with_magnitude.flatten(1).norm(dim=1), magnitude.flatten())
    torch.testing.assert_close(without.flatten(1).norm(dim=1), torch.ones(4).double())
    cosine = torch.nn.functional.cosine_similarity(with_magnitude.flatten(1), direction.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4).double())


def test_is_what_the_networks_compute() -> None:
    x = torch.randn(2, 3, 5, 5)
    for magnitude in (True, False):
        layer = WeightNormConv2d(3, 4, (3, 3), magnitude=magnitude)
        (weight,) = weight_norm([layer.direction], [layer.magnitude])
        torch.testing.assert_close(conv2d(x, weight, layer.bias, padding=1), layer(x), rtol=0, atol=0)


def test_a_direction_of_zeros_gives_zeros() -> None:
    direction = torch.zeros(2, 3, 1, 1, requires_grad=True)
    (weight,) = weight_norm([direction], [torch.ones(2, 1, 1, 1)])
    weight.sum().backward()
    assert torch.equal(weight, torch.zeros_like(weight))
    assert direction.grad.isfinite().all()
