"""A multi-scale image flow of nflows on layers of pnf: Haar wavelets, couplings, and nflows' own ActNorm between them.

Run it with: python examples/nflows_multiscale.py
"""

import math

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import ActNorm, CompositeTransform, MultiscaleCompositeTransform, ReversePermutation, Transform
from torch import Tensor, nn

from pnf import ops
from pnf.bridges.nflows import AffineCoupling, Haar, Squeeze
from pnf.data import dequantize, load

ALPHA = 0.05


class Network(nn.Module):
    """The network of a coupling, which begins with the identity."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        last = nn.Conv2d(16, outputs, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), last
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002 - nflows gives one
        return self.layers(x)


def scale(channels: int, shrink: Transform) -> list[Transform]:
    halves = torch.arange(channels) < channels // 2
    couplings = [
        layer
        for _ in range(2)
        for mask in (halves, ~halves)
        for layer in (ActNorm(channels), AffineCoupling(mask, Network))
    ]
    # nflows factors the first channels out. Those are the details, once the order is reversed.
    return [shrink, ReversePermutation(channels), *couplings]


def make(shrink: type[Transform]) -> Flow:
    composite = MultiscaleCompositeTransform(2)
    shape = composite.add_transform(CompositeTransform(scale(4, shrink())), (4, 8, 8))
    composite.add_transform(CompositeTransform(scale(4 * shape[0], shrink())), (4 * shape[0], 4, 4))
    return Flow(composite, StandardNormal((256,)))


def bits_per_dim(model: Flow, images: Tensor) -> Tensor:
    x, log_det = ops.logit(images, ALPHA)
    return (8 - (model.log_prob(x) + log_det) / (images[0].numel() * math.log(2))).mean()


def main() -> None:
    train, test = (load("fashion-mini", split, size=16).pixels for split in ("train", "test"))
    for shrink in (Squeeze, Haar):
        torch.manual_seed(0)
        model = make(shrink)
        optimiser = torch.optim.Adam(model.parameters(), 4e-3)
        for _ in range(30):
            images = dequantize(train[torch.randint(len(train), (32,))])
            optimiser.zero_grad()
            bits_per_dim(model, images).backward()
            optimiser.step()
        with torch.no_grad():
            bits = bits_per_dim(model.eval(), dequantize(test[:200]))
        print(f"nflows with {shrink.__name__:7}: {bits:.3f} bits/dim held out, samples {tuple(model.sample(4).shape)}")


if __name__ == "__main__":
    main()
