"""A Glow-like flow of normflows with the coupling of pnf in place of its own: the same numbers, and the time of each.

Run it with: python examples/normflows_glow.py
"""

import time

import normflows
import torch
from torch import Tensor, nn

from pnf.bridges.normflows import AffineCoupling, Haar

CHANNELS, SIZE = 12, (16, 16)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(CHANNELS // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, CHANNELS, 3, padding=1))


class Bounded(nn.Module):
    """The same network for normflows' coupling: shift and log-scale in turn, the latter bounded."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        shift, u = self.network(x).chunk(2, 1)
        return torch.stack((shift, u.tanh()), 2).flatten(1, 2)


def model(couplings: list[nn.Module]) -> normflows.NormalizingFlow:
    base = normflows.distributions.DiagGaussian((CHANNELS, *SIZE), trainable=False)
    torch.manual_seed(1)
    layers = [layer for c in couplings for layer in (c, normflows.flows.Invertible1x1Conv(CHANNELS))]
    return normflows.NormalizingFlow(base, layers)


def step(flow: normflows.NormalizingFlow, x: Tensor) -> float:
    """Seconds of processor time for a forward and a backward pass."""
    start = time.process_time()
    flow.forward_kld(x).backward()
    return time.process_time() - start


def main() -> None:
    torch.manual_seed(0)
    networks = [network() for _ in range(4)]
    ours = model([AffineCoupling(CHANNELS, n) for n in networks])
    theirs = model([normflows.flows.AffineCouplingBlock(Bounded(n)) for n in networks])
    x = torch.randn(16, CHANNELS, *SIZE)
    difference = (ours.log_prob(x) - theirs.log_prob(x)).abs().max().item()
    print(f"log_prob of both differs by {difference:.1e} nats of {ours.log_prob(x).mean().item():.0f}")
    times = [(step(theirs, x), step(ours, x)) for _ in range(12)]
    of_theirs, of_ours = (sorted(column)[len(times) // 2] for column in zip(*times, strict=True))
    print(f"training step: normflows {of_theirs * 1e3:.0f} ms, with pnf's coupling {of_ours * 1e3:.0f} ms")

    # Haar wavelets, which normflows has not: a flow of images from their means and details.
    images = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian((3, 2 * SIZE[0], 2 * SIZE[1]), trainable=False),
        [normflows.flows.Reverse(Haar()), *ours.flows, Haar()],
    )
    print(f"samples of an image flow: {tuple(images.sample(2)[0].shape)}")


if __name__ == "__main__":
    main()
